"""The cache's own client of one registry: what an anonymous reader sees of manifests and blobs.

Answers become records or `RegistryError`s here, in `_refusal`, and nowhere else. Redirects are followed inside; the
`Authorization` header goes to the registry's own origin only.
"""

import asyncio
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from ..oci.account import Account
from ..oci.digest import Digest
from ..oci.domain import registrable_domain
from ..oci.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    DigestInvalid,
    ManifestUnknown,
    NotAsked,
    RegistryError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ..oci.manifest import MAX_MANIFEST
from ..oci.media import OCI_INDEX
from ..oci.reference import ReferrersTarget
from ..oci.registry import Registry
from .client import Client
from .http import pause, read_body, refuse_encoded, retry_after
from .listing import Listing, read_listing
from .observer import Observer
from .tokens import Challenge, Tokens, pull_scope, realm_url

_MAX_ERROR_BODY = 64 << 10
_RETRIES = 2
_BACKOFF_SECONDS = 0.2
_RETRY_WITHIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Head:
    """What a HEAD of a manifest told; the digest is None when the upstream does not name it. `size` in bytes."""

    digest: Digest | None
    media_type: str
    size: int | None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest's bytes, verified against `digest`."""

    digest: Digest
    media_type: str
    body: bytes


class BlobBody:
    """A blob's body as it arrives, from byte `start`; `size` is the whole blob's, None when the upstream hides it."""

    def __init__(self, response: aiohttp.ClientResponse, start: int, size: int | None, observer: Observer) -> None:
        self.start = start
        self.size = size
        self._response = response
        self._observer = observer

    async def chunks(self) -> AsyncIterator[bytes]:
        """Bytes as they come; raises `Unavailable` when the connection breaks, stalls or ends early."""
        host = self._response.url.host or ""
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
        client: Client,
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
        self._paused: dict[tuple[str, str], float] = {}

    @property
    def reachable(self) -> bool:
        """Whether the registry may be asked at present (not offline, and its circuit closed)."""
        return self._client.may_ask(URL(self.registry.upstream))

    def is_paused(self, kind: str, reader: str) -> bool:
        """Whether the registry told this reader a moment ago that its rate limit is used up."""
        return self._paused.get((kind, reader), 0.0) > time.monotonic()

    async def head_manifest(
        self, repository: str, reference: str | Digest, accept: str, reader: str | None = None
    ) -> Head:
        """Ask for a manifest's digest; not counted against the Hub's pull limit."""

        async def ask() -> Head:
            path = f"manifests/{reference}"
            async with self._get("manifest", repository, path, "HEAD", {"Accept": accept}, reader) as response:
                return Head(_digest_header(response), response.headers.get("Content-Type", ""), _length(response))

        return await _retried(ask)

    async def get_manifest(
        self, repository: str, reference: str | Digest, accept: str, reader: str | None = None
    ) -> Fetched:
        """Fetch a manifest (counted against the Hub's pull limit); raises `BadUpstream` when its bytes are not it."""

        async def ask() -> Fetched:
            path = f"manifests/{reference}"
            async with self._get("manifest", repository, path, "GET", {"Accept": accept}, reader) as response:
                return await _read_manifest(response, reference)

        return await _retried(ask)

    async def get_referrers(self, repository: str, subject: Digest, query: str, reader: str | None = None) -> Listing:
        """A page of what refers to a digest; raises `ManifestUnknown` where the registry has no such API, too."""

        async def ask() -> Listing:
            path = f"referrers/{subject}" + (f"?{query}" if query else "")
            async with self._get("referrers", repository, path, "GET", {"Accept": OCI_INDEX}, reader) as response:
                return await read_listing(response, ReferrersTarget(repository, subject))

        return await _retried(ask)

    async def head_blob(self, repository: str, digest: Digest, reader: str | None = None) -> int | None:
        """Ask whether the repository has this blob; its size where told."""

        async def ask() -> int | None:
            async with self._get("blob", repository, f"blobs/{digest}", "HEAD", {}, reader) as response:
                return _length(response)

        return await _retried(ask)

    @asynccontextmanager
    async def open_blob(
        self, repository: str, digest: Digest, start: int = 0, end: int | None = None, reader: str | None = None
    ) -> AsyncIterator[BlobBody]:
        """Open a blob from byte `start`, up to before byte `end`. An upstream may ignore this: see `BlobBody.start`."""
        ranged = start > 0 or end is not None
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if ranged else {}
        async with self._get("blob", repository, f"blobs/{digest}", "GET", headers, reader) as response:
            refuse_encoded(response)
            if response.status == 206:
                yield BlobBody(response, *_content_range(response, start), self._client.observer)
            else:
                yield BlobBody(response, 0, _length(response), self._client.observer)

    async def anonymous_authorization(self, repository: str) -> str | None:
        """What an anonymous reader of the repository sends as `Authorization`; None where nothing is needed."""
        challenge = await self.challenge()
        if challenge is None:
            return None
        return f"Bearer {await self._tokens.get(challenge, pull_scope(repository))}"

    async def account_authorization(self, repository: str) -> str | None:
        """What the configured account sends; None where there is none, or its password may not be sent to the realm.

        The realm must be in the registry's own domain: a registry that names another must not get the password sent
        there (RFC 6750 leaves this to the client).
        """
        challenge = await self.challenge() if self.account is not None else None
        if challenge is None or not _same_domain(self.registry.upstream, challenge.realm):
            return None
        return f"Bearer {await self._tokens.get(challenge, pull_scope(repository), self.account)}"

    async def challenge(self) -> Challenge | None:
        """What the registry's ping demands; asked once, then remembered."""
        if self._challenge is None:
            async with self._client.send("ping", "GET", URL(f"{self.registry.upstream}/v2/"), {}) as response:
                self._learn(response)
        return self._challenge

    # -- requests -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _get(
        self, kind: str, repository: str, path: str, method: str, headers: dict[str, str], reader: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One read: with the token at hand, once more with a new one after a 401, then through redirects."""
        asker = (kind, reader or "")
        left = self._paused.get(asker, 0.0) - time.monotonic()
        if left > 0:
            raise TooManyRequests("upstream limits our requests", left)
        url = URL(f"{self.registry.upstream}/v2/{repository}/{path}")
        scope = pull_scope(repository)
        authorization = reader
        is_new = self._challenge is None or not self._tokens.has(self._challenge, scope)
        if reader is None and self._challenge is not None:
            authorization = f"Bearer {await self._tokens.get(self._challenge, scope)}"
        for last in (reader is not None, True):
            authorized = headers | ({"Authorization": authorization} if authorization else {})
            async with self._client.follow(kind, method, url, authorized) as response:
                self._see_limit(response, scope, reader)
                asked_us = response.url.origin() == url.origin()  # else a CDN, which has no say in our tokens
                challenge = self._learn(response) if response.status == 401 and asked_us else None
                if last or challenge is None or (authorization and is_new and challenge.error == "insufficient_scope"):
                    await self._check(response, kind, repository, asker)
                    yield response
                    return
            asked = Challenge(challenge.realm, challenge.service, None)
            if authorization is not None:
                self._tokens.forget(asked, scope, authorization.removeprefix("Bearer "))
            authorization = f"Bearer {await self._tokens.get(asked, scope)}"

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
                by_account = self._challenge is not None and self._tokens.is_accounts(self._challenge, scope, token)
                credential = "account" if by_account else "client"
            self._client.observer.rate_limit_seen(
                self.registry.host, credential, int(limit) if limit.isdecimal() else None, int(remaining)
            )

    def _learn(self, response: aiohttp.ClientResponse) -> Challenge | None:
        header = response.headers.get("WWW-Authenticate")
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
        self, response: aiohttp.ClientResponse, kind: str, repository: str, asker: tuple[str, str]
    ) -> None:
        """Raise what the status means unless it is 200 or 206, and not the page of a portal or a maintenance."""
        if response.status in (200, 206):
            if response.content_type == "text/html":
                raise BadUpstream(f"upstream answers HTML where a {kind} was expected")
            return
        if response.status == 429:
            # Remembered, so that clients which try again at once (containerd: 5 times) cost the upstream nothing.
            now = time.monotonic()
            self._paused = {key: until for key, until in self._paused.items() if until > now}
            self._paused[asker] = now + pause(response)
        try:
            body = await read_body(response, _MAX_ERROR_BODY)
        except (aiohttp.ClientError, TimeoutError, BadUpstream):
            body = b""  # the status alone says enough
        raise _refusal(response, self.registry.upstream, kind, repository, body)


async def _retried[Value](ask: Callable[[], Awaitable[Value]]) -> Value:
    """Once or twice more after a failure that was quick: a restarting server is worth a second, a dead one is not."""
    begun = time.monotonic()
    for attempt in range(_RETRIES):
        try:
            return await ask()
        except NotAsked:
            raise
        except Unavailable:
            if time.monotonic() - begun > _RETRY_WITHIN_SECONDS:
                raise
        await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt)
    return await ask()


async def _read_manifest(response: aiohttp.ClientResponse, reference: str | Digest) -> Fetched:
    try:
        body = await read_body(response, MAX_MANIFEST)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"transfer of a manifest broke off: {type(error).__name__}") from error
    expected = reference if isinstance(reference, Digest) else _digest_header(response)
    if expected is not None and not expected.matches(body):
        raise BadUpstream(
            "manifest does not match its digest", {"expected": str(expected), "got": str(Digest.of(body))}
        )
    return Fetched(expected or Digest.of(body), response.headers.get("Content-Type", ""), body)


def _same_domain(upstream: str, realm: str) -> bool:
    """Whether two URLs are of one registrable domain (or one address), the second not weaker protected."""
    ours, theirs = URL(upstream), realm_url(realm)
    if ours.scheme == "https" and theirs.scheme != "https":
        return False
    if _is_address(ours.host) or _is_address(theirs.host):
        return ours.host == theirs.host
    domains = {registrable_domain(url.host or "") for url in (ours, theirs)}
    return len(domains) == 1


def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True


def _refusal(response: aiohttp.ClientResponse, upstream: str, kind: str, repository: str, body: bytes) -> RegistryError:
    code, message = _first_error(body)
    detail = {
        "repository": repository,
        "upstream_status": response.status,
        "upstream_code": code,
        "upstream_message": message,
    }
    match response.status:
        case 401 if response.url.origin() == URL(upstream).origin():
            challenge = response.headers.get("WWW-Authenticate", "")
            return Unauthorized("authentication required", challenge, detail)
        case 401 | 403:
            return Denied("requested access to the resource is denied", detail)
        case 404 if kind == "blob":
            return BlobUnknown("blob unknown to registry", detail)
        case 404:
            return ManifestUnknown("manifest unknown", detail)
        case 429:
            return TooManyRequests("upstream limits our requests", retry_after(response))
        case status if status >= 500:
            return Unavailable(f"upstream answered {status}", detail)
        case status:
            return BadUpstream(f"upstream answered {status}", detail)


def _first_error(body: bytes) -> tuple[str | None, str | None]:
    """The upstream's own code and words, where it speaks the spec's error form."""
    try:
        error = json.loads(body)["errors"][0]
        return str(error["code"])[:100], str(error["message"])[:500]
    except (ValueError, LookupError, TypeError):
        return None, None


def _digest_header(response: aiohttp.ClientResponse) -> Digest | None:
    value = response.headers.get("Docker-Content-Digest")
    if value is None:
        return None
    try:
        return Digest.parse(value)
    except DigestInvalid as error:
        raise BadUpstream("upstream sent a malformed Docker-Content-Digest", {"digest": value[:200]}) from error


def _length(response: aiohttp.ClientResponse) -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdecimal() and len(value) < 20 else None


def _content_range(response: aiohttp.ClientResponse, start: int) -> tuple[int, int | None]:
    """Start and whole size of `Content-Range: bytes 10-99/100`."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    interval, _, size = rest.partition("/")
    first = interval.partition("-")[0]
    if unit != "bytes" or not first.isdecimal() or int(first) != start:
        raise BadUpstream("upstream answered another range than asked for", {"asked": start, "got": rest[:100]})
    return start, int(size) if size.isdecimal() else None
