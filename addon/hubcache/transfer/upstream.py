"""Reads manifests, referrers and blobs from one registry (distribution spec, "Pull" and "Listing Referrers").

Responses become records here and in `upstream_response`, or `RegistryError`s in `upstream_errors`. Redirects are
followed; the `Authorization` header is sent to the registry's own origin only.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from ..oci.account import Account
from ..oci.digest import Digest
from ..oci.errors import BadUpstream, TooManyRequests, Unavailable, UpstreamNotContacted
from ..oci.media import OCI_INDEX
from ..oci.reference import ReferrersTarget
from ..oci.registry import Registry
from .blob_body import BlobBody, BlobDownload
from .challenge import Challenge
from .http_response import HttpResponse, Send
from .rate_limit_pauses import RateLimitPauses
from .referrers_page import ReferrersPage, read_referrers_page
from .registry_credentials import RegistryCredentials
from .response_body import content_coding, read_text_body
from .retry_after import pause_seconds
from .tokens import Tokens, pull_scope
from .upstream_client import UpstreamClient
from .upstream_errors import MAX_ERROR_BODY, RedirectTargetRefused, error_of_redirect_target, error_of_registry
from .upstream_response import (
    FetchedManifest,
    content_length,
    content_range,
    digest_header,
    explain_content_coding,
    read_manifest,
)

_RETRIES = 2
_BACKOFF_SECONDS = 0.2
_RETRY_WITHIN_SECONDS = 2.0
_INSUFFICIENT_SCOPE = "insufficient_scope"
_MAX_REQUESTS = 3
"""Requests for one read: the first without a token or with an old one, the second with a new token, and the third with
another token when the registry did not know the new one yet."""


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """The response to a HEAD of a manifest; the digest is None when the upstream does not send it. `size` in bytes.

    `answered_at`: see `FetchedManifest`.
    """

    digest: Digest | None
    media_type: str
    size: int | None
    answered_at: float = field(compare=False)


class Upstream:
    """One registry. Reads are anonymous unless an `authorization`, a client's own or the account's, is given.

    `is_public` of a read means that every client may read the content, as an anonymous request has shown immediately
    before: an `authorization` then only decides for whom the registry counts the pull. This class makes no use of it.

    `learned` and `account`: see `RegistryCredentials`. Pauses are measured with `clock` (seconds), `wall_clock` returns
    seconds since the epoch.
    """

    def __init__(
        self,
        registry: Registry,
        client: UpstreamClient,
        tokens: Tokens,
        learned: Callable[[Registry, Challenge], None],
        account: Account | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = registry
        self._client = client
        self._tokens = tokens
        self._clock = clock
        self._wall_clock = wall_clock
        self._credentials = RegistryCredentials(registry, client, tokens, learned, account, self._now)
        self._origin = URL(registry.upstream)
        self._pauses = RateLimitPauses(self._now)

    def _now(self) -> float:
        return self._clock()

    # -- state ------------------------------------------------------------------------------------------------------

    @property
    def client(self) -> UpstreamClient:
        """The HTTP client that decides which addresses the registry and its token service may have."""
        return self._client

    @property
    def tokens(self) -> Tokens:
        """The tokens of the registry's token service."""
        return self._tokens

    @property
    def account(self) -> Account | None:
        """The configured account, for content that is known to be public."""
        return self._credentials.account

    @account.setter
    def account(self, account: Account | None) -> None:
        self._credentials.account = account

    @property
    def is_reachable(self) -> bool:
        """Whether a request to the registry would be sent (not offline, and its circuit is closed)."""
        return self._client.may_contact(self._origin)

    @property
    def last_challenge(self) -> Challenge | None:
        """The last Bearer challenge of the registry; None before the first."""
        return self._credentials.last_challenge

    @property
    def other_challenge(self) -> str | None:
        """A challenge of another scheme than Bearer, as the ping returned it; clients receive it unchanged."""
        return self._credentials.other_challenge

    @property
    def token_service_failure(self) -> str | None:
        """Why the registry's token service issues no tokens at present; None when no failure is known."""
        return self._credentials.token_service_failure

    def is_rate_limited(self, kind: str, authorization: str) -> bool:
        """Whether the registry answered 429 to these credentials, and its pause is not over."""
        return self._pauses.remaining(kind, authorization) > 0

    def pause(self, kind: str, seconds: float) -> None:
        """Send no anonymous request for this kind of content for a time, as after a 429: another cache received one."""
        self._pauses.extend(kind, "", seconds)

    def _anonymous_pause_began(self, kind: str, seconds: float) -> None:
        """Called when the registry answered 429 to an anonymous request, for subclasses that report it."""

    # -- credentials ------------------------------------------------------------------------------------------------

    async def challenge(self) -> Challenge | None:
        """See `RegistryCredentials.challenge`."""
        return await self._credentials.challenge()

    async def anonymous_authorization(self, repository: str) -> str | None:
        """See `RegistryCredentials.anonymous`."""
        return await self._credentials.anonymous(repository)

    async def account_authorization(self, repository: str) -> str | None:
        """See `RegistryCredentials.of_account`."""
        return await self._credentials.of_account(repository)

    # -- reads ------------------------------------------------------------------------------------------------------

    async def head_manifest(
        self,
        repository: str,
        reference: str | Digest,
        accept: str,
        authorization: str | None = None,
        *,
        not_before: float = -math.inf,
    ) -> ManifestHead:
        """Request a manifest's head; Docker Hub does not count this against the pull limit.

        An answer from before `not_before`, in seconds since the epoch, is of no use to the caller; here each answer is
        new.
        """

        async def request() -> ManifestHead:
            path, sent_at = f"manifests/{reference}", self._wall_clock()
            async with self._read("manifest", repository, path, "HEAD", {"Accept": accept}, authorization) as response:
                size = None if content_coding(response) else content_length(response)  # else that of the encoded body
                return ManifestHead(digest_header(response), response.headers.get("Content-Type", ""), size, sent_at)

        return await _with_retries(request)

    async def get_manifest(
        self,
        repository: str,
        reference: str | Digest,
        accept: str,
        authorization: str | None = None,
        *,
        is_public: bool = False,
    ) -> FetchedManifest:
        """Fetch a manifest, which counts against Docker Hub's pull limit; raises `BadUpstream` when its bytes do not
        match its digest."""

        async def request() -> FetchedManifest:
            path, sent_at = f"manifests/{reference}", self._wall_clock()
            async with self._read("manifest", repository, path, "GET", {"Accept": accept}, authorization) as response:
                return await read_manifest(response, reference, sent_at)

        return await _with_retries(request)

    async def get_referrers(
        self, repository: str, subject: Digest, query: str, authorization: str | None = None
    ) -> ReferrersPage:
        """Fetch a page of a digest's referrers; raises `ManifestUnknown` also where the registry has no such API."""

        async def request() -> ReferrersPage:
            path = f"referrers/{subject}" + (f"?{query}" if query else "")
            headers = {"Accept": OCI_INDEX}
            async with self._read("referrers", repository, path, "GET", headers, authorization) as response:
                return await read_referrers_page(response, ReferrersTarget(repository, subject))

        return await _with_retries(request)

    async def head_blob(self, repository: str, digest: Digest, authorization: str | None = None) -> int | None:
        """Check that the repository has this blob; returns its size where the registry sends it.

        A redirect means that it has, whatever the redirect's target answers: a signature may be valid for GET only.
        """

        async def request() -> int | None:
            try:
                async with self._read("blob", repository, f"blobs/{digest}", "HEAD", {}, authorization) as response:
                    return None if content_coding(response) else content_length(response)
            except RedirectTargetRefused:
                return None

        return await _with_retries(request)

    @asynccontextmanager
    async def open_blob(
        self,
        repository: str,
        digest: Digest,
        start: int = 0,
        end: int | None = None,
        authorization: str | None = None,
        *,
        is_public: bool = False,
    ) -> AsyncIterator[BlobBody]:
        """Open a blob from byte `start` to before byte `end`. An upstream may ignore this: see `BlobBody.start`."""
        sent_at = self._wall_clock()
        async with self._open_blob(repository, digest, start, end, authorization, self._client.send) as response:
            host, report = response.url.authority, self._client.observer.upstream_bytes
            yield BlobBody(response.content, host, *_extent(response), report, sent_at)

    @asynccontextmanager
    async def download_blob(
        self,
        repository: str,
        digest: Digest,
        start: int = 0,
        authorization: str | None = None,
        *,
        is_public: bool = False,
    ) -> AsyncIterator[BlobDownload]:
        """Open a blob from byte `start` to its end, as `open_blob`, to be received in a thread."""
        sent_at = self._wall_clock()
        async with self._open_blob(repository, digest, start, None, authorization, self._client.download) as response:
            host, report = response.url.authority, self._client.observer.upstream_bytes
            yield BlobDownload(response, host, *_extent(response), report, sent_at)

    @asynccontextmanager
    async def _open_blob[R: HttpResponse](
        self,
        repository: str,
        digest: Digest,
        start: int,
        end: int | None,
        authorization: str | None,
        send: Send[R],
    ) -> AsyncIterator[R]:
        """Yield a response with status 200 or 206 whose body begins at `start` or at 0."""
        ranged = start > 0 or end is not None
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if ranged else {}
        for sent in (headers, headers, {}) if ranged else (headers,):
            async with self._send("blob", repository, f"blobs/{digest}", "GET", sent, authorization, send) as response:
                if _is_extent_usable(response, start if sent else 0):
                    with explain_content_coding(response):
                        yield response
                    return
        raise BadUpstream("upstream sent another range than requested", {"requested": start})

    # -- requests ---------------------------------------------------------------------------------------------------

    def _read(
        self, kind: str, repository: str, path: str, method: str, headers: dict[str, str], given: str | None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a read whose response has a small body or none."""
        return self._send(kind, repository, path, method, headers, given, self._client.send)

    @asynccontextmanager
    async def _send[R: HttpResponse](
        self,
        kind: str,
        repository: str,
        path: str,
        method: str,
        headers: dict[str, str],
        given: str | None,
        send: Send[R],
    ) -> AsyncIterator[R]:
        """Send a read by `send`, with the `given` authorization or anonymously: with the token at hand, after a 401
        with a new one; then follow redirects.

        A new token is not replaced when its scope is too small (`insufficient_scope`). When the registry does not know
        it (a registry of several machines) another one is tried, once.
        """
        pause = self._pauses.remaining(kind, given or "")
        if pause > 0:
            raise TooManyRequests("rate limit of the upstream exceeded", pause)
        url = URL(f"{self.registry.upstream}/v2/{repository}/{path}")
        scope = pull_scope(repository)
        authorization = given
        is_new = not self._credentials.has_token(scope)
        if given is None and self.is_reachable:  # else a token is of no use
            authorization = await self._credentials.remembered(scope)
        for left_over in reversed(range(_MAX_REQUESTS)):
            authorized = headers | ({"Authorization": authorization} if authorization else {})
            async with self._client.send_following_redirects(kind, method, url, authorized, send) as response:
                is_own = response.url.origin() == url.origin()  # else a CDN's, unrelated to tokens and limits
                if is_own:
                    self._report_limit(response, scope, given)
                challenge = self._credentials.learn(response) if response.status == 401 and is_own else None
                is_last = left_over == 0 or given is not None
                too_small = authorization and is_new and challenge and challenge.error == _INSUFFICIENT_SCOPE
                if challenge is None or is_last or too_small:
                    await self._check(response, kind, repository, given, is_own=is_own)
                    yield response
                    return
            authorization, is_new = await self._credentials.renewed(challenge, scope, authorization), True

    def _report_limit(self, response: HttpResponse, scope: str, given: str | None) -> None:
        """Report the rate limit of a response: `ratelimit-remaining: 98;w=21600`, the number before the semicolon."""
        limit, remaining = (
            response.headers.get(name, "").partition(";")[0].strip()
            for name in ("ratelimit-limit", "ratelimit-remaining")
        )
        if remaining.isdecimal():
            kind = self._credentials.kind(given, scope)
            known_limit = int(limit) if limit.isdecimal() else None
            self._client.observer.rate_limit_seen(self.registry.host, kind, known_limit, int(remaining))

    async def _check(
        self, response: HttpResponse, kind: str, repository: str, given: str | None, *, is_own: bool
    ) -> None:
        """Raise the error of a status other than 200 and 206, and `BadUpstream` for an HTML page (a login portal's, or
        one about maintenance).

        `is_own`: the response comes from the registry's own origin.
        """
        if response.status in (200, 206):
            if response.content_type == "text/html":
                raise BadUpstream(f"upstream sent an HTML page instead of a {kind}")
            return
        if response.status == 416 and kind == "blob":
            return  # see `open_blob`
        if response.status == 429 and is_own:
            # Remembered, so that clients which retry at once (containerd: 5 times) cause no requests upstream.
            seconds = pause_seconds(response)
            self._pauses.begin(kind, given or "", seconds)
            if given is None:
                self._anonymous_pause_began(kind, seconds)
        try:
            body = await read_text_body(response, MAX_ERROR_BODY, "an error")
        except (Unavailable, BadUpstream):
            body = b""  # the status is sufficient
        error = error_of_registry if is_own else error_of_redirect_target
        raise error(response, kind, repository, body)


def _extent(response: HttpResponse) -> tuple[int, int | None]:
    """Return the first byte of a response's body, and the complete size if it is known."""
    return (0, content_length(response)) if response.status == 200 else content_range(response)


def _is_extent_usable(response: HttpResponse, start: int) -> bool:
    """Whether the body begins at `start` or, with status 200, at 0; else the request is to be repeated."""
    return response.status == 200 or (response.status == 206 and _extent(response)[0] == start)


async def _with_retries[Value](request: Callable[[], Awaitable[Value]]) -> Value:
    """Retry once or twice after a quick failure: this helps with a server that restarts, not with one that is down."""
    begun = time.monotonic()
    for attempt in range(_RETRIES):
        try:
            return await request()
        except UpstreamNotContacted:
            raise
        except Unavailable:
            if time.monotonic() - begun > _RETRY_WITHIN_SECONDS:
                raise
        await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt)
    return await request()
