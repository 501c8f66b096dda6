"""The token service as clients see it: anonymous clients are answered here, logged-in ones by the real service.

So a warm anonymous pull contacts nobody, and a dead token service stops no pull of a stored public image.
"""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import parse_qs

import aiohttp
from yarl import URL

from ..oci.errors import BadUpstream, RegistryError, TooManyRequests, Unavailable
from ..oci.registry import HUB_REALM, Registry
from ..store.store import Store
from ..transfer.client import Client
from ..transfer.http import read_body, retry_after
from ..transfer.sources import BytesSource
from ..transfer.tokens import Challenge, parse_token, realm_url
from ..transfer.upstream import Upstream
from .errors import error_answer
from .messages import LOCAL_TOKEN, Answer, Door, Request, Result

_LIFETIME = 300
_PATIENCE_SECONDS = 5.0
_MAX_BODY = 1 << 20
_PASSED_ON = ("content-type", "accept", "user-agent")


class TokenService:
    """Answers token requests. `upstreams` is by registry host."""

    def __init__(
        self,
        store: Store,
        client: Client,
        upstreams: dict[str, Upstream],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._client = client
        self._upstreams = upstreams
        self._clock = clock

    def serves(self, request: Request) -> bool:
        """Whether a request to a registry's own host is one to its token service (ghcr.io, quay.io and others)."""
        if request.door is not Door.PROXY or request.path.startswith("/v2/"):
            return False
        known = Challenge.parse(self._store.challenge(request.registry.host))
        if known is None:
            return False
        try:
            realm = realm_url(known.realm)
        except BadUpstream:
            return False
        return realm.host == request.registry.hostname and realm.path == request.path

    async def answer(self, request: Request) -> Answer:
        """A token, or the real service's refusal; an error of our own when neither can be had."""
        try:
            outcome = await self._answer(request)
        except RegistryError as error:
            outcome = error_answer(error, request.method)
        outcome.kind = "token"
        return outcome

    async def _answer(self, request: Request) -> Answer:
        if request.method == "GET" and request.credentials is None:
            return self._local()
        only_pulls = _asks_only_for_pulls(request)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS if only_pulls else None):
                return await self._ask(request)
        except (Unavailable, BadUpstream, TooManyRequests, TimeoutError) as error:
            if only_pulls:
                return self._local()
            if isinstance(error, RegistryError):
                raise
            raise Unavailable("token service is slow") from error

    def _local(self) -> Answer:
        issued = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        token = {"token": LOCAL_TOKEN, "access_token": LOCAL_TOKEN, "expires_in": _LIFETIME, "issued_at": issued}
        body = json.dumps(token).encode()
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        return Answer(200, headers, Result.LOCAL, body=body, length=len(body))

    async def _ask(self, request: Request) -> Answer:
        """The real service's answer. Its body goes out as a stream, so that no token stays in a recorded flow."""
        url = realm_url(await self._realm(request.registry))
        if request.query:
            url = URL(f"{url.with_query(None)}?{request.query}", encoded=True)
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        if request.credentials is not None:
            headers["Authorization"] = request.credentials
        async with self._client.send("token", request.method, url, headers, request.body or None) as response:
            if response.status == 429:
                raise TooManyRequests("token service limits requests", retry_after(response))
            if response.status >= 500 or response.status == 429 or response.content_type == "text/html":
                raise Unavailable(f"token service answered {response.status}")
            try:
                body = await read_body(response, _MAX_BODY)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise Unavailable(f"token service broke off: {type(error).__name__}") from error
            if response.status == 200:
                parse_token(body)  # raises when there is none in it: a maintenance page, say
            kept = {"Content-Type": response.headers.get("Content-Type", "application/json")}
            for name in ("WWW-Authenticate", "Retry-After"):
                if name in response.headers:
                    kept[name] = response.headers[name]
            source = BytesSource(body) if body else None
            return Answer(response.status, kept, Result.BYPASS, source=source, length=len(body))

    async def _realm(self, registry: Registry) -> str:
        if registry.is_hub and registry.upstream == f"https://{registry.host}":
            return HUB_REALM
        challenge = await self._upstreams[registry.host].challenge()
        if challenge is None:
            raise BadUpstream("upstream needs no tokens")
        return challenge.realm


def _asks_only_for_pulls(request: Request) -> bool:
    """Whether a local token would do. Not for `docker login` (no scope): it must not succeed without a check."""
    text = request.query if request.method == "GET" else (request.body or b"").decode("latin-1")
    scopes = " ".join(parse_qs(text).get("scope", [])).split()
    return bool(scopes) and all(scope.startswith("repository:") and scope.endswith(":pull") for scope in scopes)
