"""The cache's own client of one registry: what an anonymous reader sees of manifests and blobs.

Answers become records or `RegistryError`s here, in `_refusal`, and nowhere else. Redirects are followed inside; the
`Authorization` header goes to the registry's own origin only.
"""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from ..oci.digest import Digest
from ..oci.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    DigestInvalid,
    ManifestUnknown,
    RegistryError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ..oci.manifest import MAX_MANIFEST
from ..oci.registry import Registry
from .http import read_body, refuse_encoded, retry_after
from .observer import Observer
from .tokens import Challenge, Tokens, pull_scope

_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_ERROR_BODY = 64 << 10


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
    """One registry, read anonymously. `learned` is called with each authentication challenge that it sends."""

    def __init__(
        self,
        registry: Registry,
        http: aiohttp.ClientSession,
        tokens: Tokens,
        observer: Observer,
        learned: Callable[[Registry, Challenge], None],
    ) -> None:
        self.registry = registry
        self._http = http
        self._tokens = tokens
        self._observer = observer
        self._learned = learned
        self._challenge: Challenge | None = None

    async def head_manifest(self, repository: str, reference: str | Digest, accept: str) -> Head:
        """Ask for a manifest's digest; not counted against the Hub's pull limit."""
        async with self._get("manifest", repository, f"manifests/{reference}", "HEAD", {"Accept": accept}) as response:
            return Head(_digest_header(response), response.headers.get("Content-Type", ""), _length(response))

    async def get_manifest(self, repository: str, reference: str | Digest, accept: str) -> Fetched:
        """Fetch a manifest (counted against the Hub's pull limit); raises `BadUpstream` when its bytes are not it."""
        async with self._get("manifest", repository, f"manifests/{reference}", "GET", {"Accept": accept}) as response:
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

    async def head_blob(self, repository: str, digest: Digest) -> int | None:
        """Ask whether the repository has this blob; its size where told."""
        async with self._get("blob", repository, f"blobs/{digest}", "HEAD", {}) as response:
            return _length(response)

    @asynccontextmanager
    async def open_blob(
        self, repository: str, digest: Digest, start: int = 0, end: int | None = None
    ) -> AsyncIterator[BlobBody]:
        """Open a blob from byte `start`, up to before byte `end`. An upstream may ignore this: see `BlobBody.start`."""
        ranged = start > 0 or end is not None
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if ranged else {}
        async with self._get("blob", repository, f"blobs/{digest}", "GET", headers) as response:
            refuse_encoded(response)
            if response.status == 206:
                yield BlobBody(response, *_content_range(response, start), self._observer)
            else:
                yield BlobBody(response, 0, _length(response), self._observer)

    async def anonymous_authorization(self, repository: str) -> str | None:
        """What an anonymous reader of the repository sends as `Authorization`; None where nothing is needed."""
        challenge = await self.challenge()
        if challenge is None:
            return None
        return f"Bearer {await self._tokens.get(challenge, pull_scope(repository))}"

    async def challenge(self) -> Challenge | None:
        """What the registry's ping demands; asked once, then remembered."""
        if self._challenge is None:
            async with self._send("ping", "GET", URL(f"{self.registry.upstream}/v2/"), {}) as response:
                self._learn(response)
        return self._challenge

    # -- requests -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _get(
        self, kind: str, repository: str, path: str, method: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One read: with the token at hand, once more with a new one after a 401, then through redirects."""
        url = URL(f"{self.registry.upstream}/v2/{repository}/{path}")
        scope = pull_scope(repository)
        token = None if self._challenge is None else await self._tokens.get(self._challenge, scope)
        for last in (False, True):
            authorized = headers | ({"Authorization": f"Bearer {token}"} if token else {})
            async with self._follow(kind, method, url, authorized) as response:
                challenge = self._learn(response) if response.status == 401 else None
                if last or challenge is None or (token is not None and challenge.error == "insufficient_scope"):
                    await self._check(response, kind, repository)
                    yield response
                    return
            if token is not None:
                self._tokens.forget(challenge, scope, token)
            token = await self._tokens.get(challenge, scope)

    @asynccontextmanager
    async def _follow(
        self, kind: str, method: str, url: URL, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        origin = url.origin()
        for _ in range(_MAX_REDIRECTS + 1):
            async with self._send(kind, method, url, headers) as response:
                target = response.headers.get("Location")
                if response.status not in _REDIRECTS or target is None:
                    yield response
                    return
            url = _redirect(url, target)
            if url.origin() != origin:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise BadUpstream("upstream redirects in a loop")

    @asynccontextmanager
    async def _send(
        self, kind: str, method: str, url: URL, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        host = url.host or ""
        try:
            response = await self._http.request(method, url, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._observer.upstream_answered(host, kind, "error")
            raise Unavailable(f"{host} cannot be reached: {type(error).__name__}") from error
        self._observer.upstream_answered(host, kind, str(response.status))
        self._see_limit(response, host)
        try:
            yield response
        finally:
            response.release() if response.content.at_eof() else response.close()

    def _see_limit(self, response: aiohttp.ClientResponse, host: str) -> None:
        """`ratelimit-remaining: 98;w=21600`: the number before the semicolon."""
        limit, remaining = (
            response.headers.get(name, "").partition(";")[0].strip()
            for name in ("ratelimit-limit", "ratelimit-remaining")
        )
        if remaining.isdecimal():
            self._observer.rate_limit_seen(host, int(limit) if limit.isdecimal() else None, int(remaining))

    def _learn(self, response: aiohttp.ClientResponse) -> Challenge | None:
        challenge = Challenge.parse(response.headers.get("WWW-Authenticate"))
        if challenge is not None and challenge != self._challenge:
            self._challenge = Challenge(challenge.realm, challenge.service, None)
            self._learned(self.registry, self._challenge)
        return challenge

    async def _check(self, response: aiohttp.ClientResponse, kind: str, repository: str) -> None:
        """Raise what the status means unless it is 200 or 206."""
        if response.status not in (200, 206):
            try:
                body = await read_body(response, _MAX_ERROR_BODY)
            except (aiohttp.ClientError, TimeoutError, BadUpstream):
                body = b""  # the status alone says enough
            raise _refusal(response, kind, repository, body)


def _refusal(response: aiohttp.ClientResponse, kind: str, repository: str, body: bytes) -> RegistryError:
    detail = {"repository": repository, "upstream_status": response.status, "upstream_message": _message(body)}
    match response.status:
        case 401:
            challenge = response.headers.get("WWW-Authenticate", "")
            return Unauthorized("authentication required", challenge, detail)
        case 403:
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


def _message(body: bytes) -> str | None:
    """The upstream's own words, where it speaks the spec's error form."""
    try:
        return str(json.loads(body)["errors"][0]["message"])[:500]
    except (ValueError, LookupError, TypeError):
        return None


def _redirect(url: URL, target: str) -> URL:
    """The next URL, its signature untouched; raises `BadUpstream` for one that must not be followed."""
    try:
        following = url.join(URL(target, encoded=True))
    except ValueError as error:
        raise BadUpstream("upstream redirects to something that is not a URL") from error
    if following.host is None or following.scheme not in ("http", "https"):
        raise BadUpstream("upstream redirects to something that is not an http URL")
    if url.scheme == "https" and following.scheme == "http":
        raise BadUpstream("upstream redirects from https to http")
    return following


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
