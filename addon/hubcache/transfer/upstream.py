"""The cache's own client of one registry: what an anonymous reader sees of manifests and blobs.

Answers become records here, or `RegistryError`s in `refusals`, and nowhere else. Redirects are followed inside; the
`Authorization` header goes to the registry's own origin only.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from cachetools import TLRUCache
from yarl import URL

from ..decide.throttle import Throttle
from ..oci.account import Account
from ..oci.digest import Digest
from ..oci.errors import BadUpstream, TooManyRequests, Unavailable, UpstreamNotContacted
from ..oci.media import OCI_INDEX
from ..oci.reference import ReferrersTarget
from ..oci.registry import Registry
from .challenge import Challenge
from .observer import Observer
from .realms import may_receive_password
from .referrers_page import ReferrersPage, read_referrers_page
from .session import content_coding, pause, read_text
from .tokens import Tokens, pull_scope
from .upstream_client import UpstreamClient
from .upstream_errors import MAX_ERROR_BODY, RedirectTargetRefused, error_of_redirect_target, error_of_registry
from .upstream_response import (
    FetchedManifest,
    challenge_header,
    content_length,
    content_range,
    digest_header,
    encoded,
    read_manifest,
)

_RETRIES = 2
_BACKOFF_SECONDS = 0.2
_RETRY_WITHIN_SECONDS = 2.0
_ASK_ANEW_SECONDS = 60.0
_MAX_PAUSED = 10_000
_TOO_LITTLE = "insufficient_scope"
_MOST_REQUESTS = 3
"""For one read: without a token or with an old one, with a new one, and with another where that was not known yet."""


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a HEAD of a manifest told; the digest is None when the upstream does not name it. `size` in bytes."""

    digest: Digest | None
    media_type: str
    size: int | None


class BlobBody:
    """A blob's body as it arrives, from byte `start`; `size` is the whole blob's, None when the upstream hides it."""

    def __init__(self, response: aiohttp.ClientResponse, start: int, size: int | None, observer: Observer) -> None:
        self.start = start
        self.size = size
        self._response = response
        self._observer = observer

    async def chunks(self) -> AsyncIterator[bytes]:
        """Bytes as they come; raises `Unavailable` when the connection breaks, stalls or ends early."""
        host = self._response.url.authority
        try:
            async for chunk in self._response.content.iter_any():
                self._observer.upstream_bytes(host, len(chunk))
                yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"transfer from {host} broke off: {type(error).__name__}") from error


class Upstream:
    """One registry. Reads are anonymous unless a `reader`, a client's own `Authorization`, is given.

    `learned` is called with each authentication challenge that the registry sends. `account` may read in place of the
    anonymous reader where the caller knows that anybody may read.
    """

    def __init__(
        self,
        registry: Registry,
        client: UpstreamClient,
        tokens: Tokens,
        learned: Callable[[Registry, Challenge], None],
        account: Account | None = None,
    ) -> None:
        self.registry = registry
        self.account = account
        self._client = client
        self._tokens = tokens
        self._learned = learned
        self.other_challenge: str | None = None
        """A demand for authentication that is not Bearer, as the ping showed it; to be told to clients as it is."""
        self._challenge: Challenge | None = None
        self._home = URL(registry.upstream)
        self._asks_anew = Throttle(_ASK_ANEW_SECONDS, _now)
        self._paused: TLRUCache[tuple[str, str], float] = TLRUCache(_MAX_PAUSED, lambda _, until, __: until, _now)

    @property
    def is_reachable(self) -> bool:
        """Whether the registry may be asked at present (not offline, and its circuit closed)."""
        return self._client.may_contact(self._home)

    @property
    def last_challenge(self) -> Challenge | None:
        """What the registry demands, as far as it was heard."""
        return self._challenge

    @property
    def token_service_failure(self) -> str | None:
        """Why the registry's token service gives no tokens at present, as far as is known."""
        return None if self._challenge is None else self._tokens.service_failure(self._challenge.realm)

    def is_rate_limited(self, kind: str, reader: str) -> bool:
        """Whether the registry told this reader a moment ago that its rate limit is used up."""
        return self._paused.get(_asker(kind, reader), 0.0) > time.monotonic()

    async def head_manifest(
        self, repository: str, reference: str | Digest, accept: str, reader: str | None = None
    ) -> ManifestHead:
        """Ask for a manifest's digest; not counted against the Hub's pull limit."""

        async def ask() -> ManifestHead:
            path = f"manifests/{reference}"
            async with self._get("manifest", repository, path, "HEAD", {"Accept": accept}, reader) as response:
                size = None if content_coding(response) else content_length(response)  # else that of the encoded body
                return ManifestHead(digest_header(response), response.headers.get("Content-Type", ""), size)

        return await _retried(ask)

    async def get_manifest(
        self, repository: str, reference: str | Digest, accept: str, reader: str | None = None
    ) -> FetchedManifest:
        """Fetch a manifest (counted against the Hub's pull limit); raises `BadUpstream` when its bytes are not it."""

        async def ask() -> FetchedManifest:
            path = f"manifests/{reference}"
            async with self._get("manifest", repository, path, "GET", {"Accept": accept}, reader) as response:
                return await read_manifest(response, reference)

        return await _retried(ask)

    async def get_referrers(
        self, repository: str, subject: Digest, query: str, reader: str | None = None
    ) -> ReferrersPage:
        """A page of what refers to a digest; raises `ManifestUnknown` where the registry has no such API, too."""

        async def ask() -> ReferrersPage:
            path = f"referrers/{subject}" + (f"?{query}" if query else "")
            async with self._get("referrers", repository, path, "GET", {"Accept": OCI_INDEX}, reader) as response:
                return await read_referrers_page(response, ReferrersTarget(repository, subject))

        return await _retried(ask)

    async def head_blob(self, repository: str, digest: Digest, reader: str | None = None) -> int | None:
        """Ask whether the repository has this blob; its size where told.

        A redirect is a yes, whatever is said where it leads: a signature may be good for GET only.
        """

        async def ask() -> int | None:
            try:
                async with self._get("blob", repository, f"blobs/{digest}", "HEAD", {}, reader) as response:
                    return None if content_coding(response) else content_length(response)
            except RedirectTargetRefused:
                return None

        return await _retried(ask)

    @asynccontextmanager
    async def open_blob(
        self, repository: str, digest: Digest, start: int = 0, end: int | None = None, reader: str | None = None
    ) -> AsyncIterator[BlobBody]:
        """Open a blob from byte `start`, up to before byte `end`. An upstream may ignore this: see `BlobBody.start`."""
        ranged = start > 0 or end is not None
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if ranged else {}
        for asked in (headers, headers, {}) if ranged else (headers,):
            async with self._get("blob", repository, f"blobs/{digest}", "GET", asked, reader) as response:
                body = self._body(response, start, asked)
                if body is not None:
                    with encoded(response):
                        yield body
                    return
        raise BadUpstream("upstream answered another range than asked for", {"asked": start})

    def _body(self, response: aiohttp.ClientResponse, start: int, asked: dict[str, str]) -> BlobBody | None:
        """The body from `start`, or from 0; None when it is of another range, which is worth another request."""
        if response.status == 416:
            return None
        if response.status == 200:
            return BlobBody(response, 0, content_length(response), self._client.observer)
        first, size = content_range(response)
        is_right = first == (start if asked else 0)
        return BlobBody(response, first, size, self._client.observer) if is_right else None

    async def anonymous_authorization(self, repository: str) -> str | None:
        """What an anonymous reader of the repository sends as `Authorization`; None where nothing is needed."""
        challenge = await self.challenge()
        if challenge is None:
            return None
        return f"Bearer {await self._tokens.get(challenge, pull_scope(repository), home=self._home)}"

    async def account_authorization(self, repository: str) -> str | None:
        """What the configured account sends; None where there is none, or its password may not be sent to the realm.

        The realm must be in the registry's own domain: a registry that names another must not get the password sent
        there (RFC 6750 leaves this to the client).
        """
        challenge = await self.challenge() if self.account is not None else None
        if challenge is None or not may_receive_password(self.registry.upstream, challenge.realm):
            return None
        return f"Bearer {await self._tokens.get(challenge, pull_scope(repository), self.account, self._home)}"

    async def challenge(self) -> Challenge | None:
        """What the registry's ping demands; asked until it was heard, then remembered. None where it demands no
        token; raises `RegistryError` where the ping is not answered."""
        if self._challenge is None:
            async with self._client.send("ping", "GET", URL(f"{self.registry.upstream}/v2/"), {}) as response:
                if response.status == 429 or response.status >= 500:  # that demands nothing, and permits nothing
                    raise error_of_registry(response, "ping", "", b"")
                self._learn(response)
        return self._challenge

    # -- requests -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _get(
        self, kind: str, repository: str, path: str, method: str, headers: dict[str, str], reader: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One read: with the token at hand, after a 401 with a new one, then through redirects.

        A new token is refused for good where it is for too little (`insufficient_scope`). Where it is not known (a
        registry of several machines) another one is tried, once.
        """
        asker = _asker(kind, reader or "")
        left = self._paused.get(asker, 0.0) - time.monotonic()
        if left > 0:
            raise TooManyRequests("upstream limits our requests", left)
        url = URL(f"{self.registry.upstream}/v2/{repository}/{path}")
        scope = pull_scope(repository)
        authorization = reader
        is_new = self._challenge is None or not self._tokens.has(self._challenge, scope)
        if reader is None and self._challenge is not None and self.is_reachable:  # else the token is of no use
            authorization = await self._remembered(self._challenge, scope)
        for left_over in reversed(range(_MOST_REQUESTS)):
            authorized = headers | ({"Authorization": authorization} if authorization else {})
            async with self._client.send_following_redirects(kind, method, url, authorized) as response:
                is_own = response.url.origin() == url.origin()  # else a CDN, which has no say in tokens and limits
                if is_own:
                    self._see_limit(response, scope, reader)
                challenge = self._learn(response) if response.status == 401 and is_own else None
                is_last = left_over == 0 or reader is not None
                if challenge is None or is_last or (authorization and is_new and challenge.error == _TOO_LITTLE):
                    await self._check(response, kind, repository, asker if is_own else None)
                    yield response
                    return
            authorization, is_new = await self._renewed(challenge, scope, authorization), True

    async def _remembered(self, known: Challenge, scope: str) -> str | None:
        """A token of the service that the registry named before. Where that gives none, the registry is asked now and
        then whether it has another one by now: it would never be heard to say so without a request that lacks a
        token."""
        try:
            return f"Bearer {await self._tokens.get(known, scope, home=self._home)}"
        except (Unavailable, BadUpstream):
            if not self._asks_anew.permits(known):
                raise
            self._challenge = None
            try:
                named = await self.challenge()
            finally:
                self._challenge = self._challenge or known
            if named == known:
                raise
        return None if named is None else f"Bearer {await self._tokens.get(named, scope, home=self._home)}"

    async def _renewed(self, challenge: Challenge, scope: str, refused: str | None) -> str:
        asked = Challenge(challenge.realm, challenge.service, None)
        if refused is not None:
            self._tokens.forget(asked, scope, refused.removeprefix("Bearer "), self.account)
        return f"Bearer {await self._tokens.get(asked, scope, home=self._home)}"

    def _see_limit(self, response: aiohttp.ClientResponse, scope: str, reader: str | None) -> None:
        """`ratelimit-remaining: 98;w=21600`: the number before the semicolon."""
        limit, remaining = (
            response.headers.get(name, "").partition(";")[0].strip()
            for name in ("ratelimit-limit", "ratelimit-remaining")
        )
        if remaining.isdecimal():
            credential = "anonymous"
            if reader is not None:
                token = reader.removeprefix("Bearer ")
                by_account = self._challenge is not None and self._tokens.is_account_token(
                    self._challenge, scope, token, self.account
                )
                credential = "account" if by_account else "client"
            self._client.observer.rate_limit_seen(
                self.registry.host, credential, int(limit) if limit.isdecimal() else None, int(remaining)
            )

    def _learn(self, response: aiohttp.ClientResponse) -> Challenge | None:
        header = challenge_header(response)
        challenge = Challenge.parse(header)
        if challenge is None:
            self.other_challenge = header
        else:
            known = Challenge(challenge.realm, challenge.service, None)
            if known != self._challenge:
                self._challenge = known
                self._learned(self.registry, known)
        return challenge

    async def _check(
        self, response: aiohttp.ClientResponse, kind: str, repository: str, asker: tuple[str, str] | None
    ) -> None:
        """Raise what the status means unless it is 200 or 206, and not the page of a portal or a maintenance.

        `asker` is None for an answer that is not the registry's own.
        """
        if response.status in (200, 206):
            if response.content_type == "text/html":
                raise BadUpstream(f"upstream answers HTML where a {kind} was expected")
            return
        if response.status == 416 and kind == "blob":
            return  # see `open_blob`
        if response.status == 429 and asker is not None:
            # Remembered, so that clients which try again at once (containerd: 5 times) cost the upstream nothing.
            self._paused[asker] = time.monotonic() + pause(response)
        try:
            body = await read_text(response, MAX_ERROR_BODY)
        except (aiohttp.ClientError, TimeoutError, BadUpstream):
            body = b""  # the status alone says enough
        raise (error_of_registry if asker is not None else error_of_redirect_target)(response, kind, repository, body)


def _now() -> float:
    return time.monotonic()


def _asker(kind: str, reader: str) -> tuple[str, str]:
    """Who asks for what kind of content; credentials are kept as a hash only."""
    return kind, hashlib.sha256(reader.encode("utf-8", "replace")).hexdigest() if reader else ""


async def _retried[Value](ask: Callable[[], Awaitable[Value]]) -> Value:
    """Once or twice more after a failure that was quick: a restarting server is worth a second, a dead one is not."""
    begun = time.monotonic()
    for attempt in range(_RETRIES):
        try:
            return await ask()
        except UpstreamNotContacted:
            raise
        except Unavailable:
            if time.monotonic() - begun > _RETRY_WITHIN_SECONDS:
                raise
        await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt)
    return await ask()
