"""Answers token requests of clients: anonymous ones from the cache, others by the real token service.

Therefore an anonymous pull of a stored image sends no request upstream, and succeeds while the token service is down.
See "Token Authentication" of the distribution project, and RFC 6749 for the form of requests with a body.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qs

from yarl import URL

from ..oci.errors import BadUpstream, RegistryError, TooManyRequests, Unavailable
from ..oci.registry import HUB_REALM, Registry
from ..store.store import Store
from ..transfer.challenge import Challenge
from ..transfer.realms import may_receive_password, parse_realm
from ..transfer.response_body import read_text_body
from ..transfer.retry_after import retry_after
from ..transfer.sources import BytesSource
from ..transfer.tokens import parse_token
from ..transfer.upstream import Upstream
from .challenges import TOKEN_PATH, is_on_registry_host
from .errors import error_answer
from .messages import LOCAL_TOKEN, UNVERIFIED_TOKEN, Answer, Listener, Request, Result

_LIFETIME = 300
_UNVERIFIED_LIFETIME = 60
"""In seconds; clients accept no shorter lifetime. Afterwards a user's client requests a token again."""

_PATIENCE_SECONDS = 5.0
_MAX_BODY = 1 << 20
_FORWARDED_HEADERS = ("content-type", "accept", "user-agent")


class TokenService:
    """Answers token requests. `upstreams` is by registry host; `clock` returns seconds since the epoch."""

    def __init__(
        self,
        store: Store,
        upstreams: Mapping[str, Upstream],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._clock = clock

    def serves(self, request: Request) -> bool:
        """Whether a request to a registry's own host is for its token service.

        That is, for the realm of the cache, or for the registry's if it is on that host (ghcr.io, quay.io and others).
        """
        if request.listener is not Listener.PROXY or request.path.startswith("/v2/"):
            return False
        if request.path == TOKEN_PATH:
            return True
        known = self._last_challenge(request.registry)
        try:
            return (
                known is not None
                and is_on_registry_host(request.registry, known.realm)
                and parse_realm(known.realm).path == request.path
            )
        except BadUpstream:
            return False

    def _last_challenge(self, registry: Registry) -> Challenge | None:
        """Return the last challenge of the registry; after a restart in an outage, the stored one."""
        upstream = self._upstreams.get(registry.host)
        last = upstream.last_challenge if upstream is not None else None
        return last or Challenge.parse(self._store.registries.challenge(registry.host))

    async def answer(self, request: Request) -> Answer:
        """Return a token or the real service's refusal; an error answer of the cache when it cannot be reached."""
        try:
            outcome = await self._answer(request)
        except RegistryError as error:
            outcome = error_answer(error, request.method)
        outcome.kind = "token"
        return outcome

    async def _answer(self, request: Request) -> Answer:
        if request.method == "GET" and request.credentials is None:
            return self._local_token(LOCAL_TOKEN, _LIFETIME)
        only_pulls = _has_only_pull_scopes(request)
        tokens = self._upstreams[request.registry.host].tokens
        realm = None
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS if only_pulls else None):
                realm = await self._realm(request.registry)
                answer = await self._request(request, realm)
                tokens.record_success(realm)
                return answer
        except (Unavailable, BadUpstream, TooManyRequests, TimeoutError) as error:
            reason = error.message if isinstance(error, RegistryError) else "it is slow"
            if realm is not None:
                tokens.record_failure(realm, reason)
            if only_pulls:
                return self._local_token(UNVERIFIED_TOKEN, _UNVERIFIED_LIFETIME)
            if isinstance(error, Unavailable):
                error.add_context("token service cannot be reached")
            elif isinstance(error, TimeoutError):
                raise Unavailable("token service is slow") from error
            raise

    def _local_token(self, value: str, lifetime: int) -> Answer:
        issued = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        token = {"token": value, "access_token": value, "expires_in": lifetime, "issued_at": issued}
        body = json.dumps(token).encode()
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        return Answer(200, headers, Result.LOCAL, body=body, length=len(body))

    async def _request(self, request: Request, realm: str) -> Answer:
        """Return the real service's answer. Its body is sent from a source, so that no token stays in a recorded flow.

        A client that received another realm than the upstream's trusts that its password stays in the registry's
        domain: with a replaced upstream, only this check ensures that.
        """
        upstream = request.registry.upstream
        if not may_receive_password(upstream, realm):
            raise BadUpstream(
                "credentials are not sent to the token service that the upstream names: it is in another domain, or "
                "not protected as the registry is"
            )
        url = _with_query(parse_realm(realm), request)
        headers = {name: request.headers[name] for name in _FORWARDED_HEADERS if name in request.headers}
        if request.credentials is not None:
            headers["Authorization"] = request.credentials
        form, origin = request.body or None, URL(upstream)
        client = self._upstreams[request.registry.host].client
        async with client.send("token", request.method, url, headers, form, named_by=origin) as response:
            if response.status == 429:
                raise TooManyRequests("token service limits requests", retry_after(response))
            if response.status >= 500 or response.content_type == "text/html":
                raise Unavailable(f"it answered {response.status}")
            body = await read_text_body(response, _MAX_BODY, "its answer")
            if response.status == 200:
                parse_token(body)  # raises if it contains no token, such as a maintenance page
            kept = {"Content-Type": response.headers.get("Content-Type", "application/json")}
            for name in ("WWW-Authenticate", "Retry-After"):
                if name in response.headers:
                    kept[name] = response.headers[name]
            source = BytesSource(body) if body else None
            return Answer(response.status, kept, Result.BYPASS, source=source, length=len(body))

    async def _realm(self, registry: Registry) -> str:
        if registry.is_hub and registry.upstream == f"https://{registry.host}":
            return HUB_REALM
        challenge = self._last_challenge(registry) or await self._upstreams[registry.host].challenge()
        if challenge is None:
            raise BadUpstream("upstream needs no tokens")
        return challenge.realm


def _with_query(realm: URL, request: Request) -> URL:
    """Return the realm with the client's query, and with its own query if the client received another realm."""
    own = realm.raw_query_string if request.to_token_service or request.path == TOKEN_PATH else ""
    query = "&".join(filter(None, (own, request.query)))
    return URL(f"{realm.with_query(None)}?{query}", encoded=True) if query else realm


def _has_only_pull_scopes(request: Request) -> bool:
    """Whether a token of the cache suffices. Not for `docker login` (no scope), which must not succeed unchecked."""
    text = request.query if request.method == "GET" else (request.body or b"").decode("latin-1")
    scopes = " ".join(parse_qs(text).get("scope", [])).split()
    return bool(scopes) and all(scope.startswith("repository:") and scope.endswith(":pull") for scope in scopes)
