"""Sends the cache's own requests: circuit breaker, time-outs, retries on stale connections, redirects, metrics."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from ..decide.outbound_proxy import OutboundProxies
from ..oci.errors import BadUpstream, HeaderInvalid, Unavailable, UpstreamNotContacted
from .breaker import CircuitBreakers, Probe
from .connection_errors import describe
from .connector import REFUSED_ADDRESS, Attempt
from .download_response import DownloadResponse
from .download_session import DownloadSession
from .http_response import HttpResponse, Send
from .local_registries import LocalRegistries
from .observer import Observer
from .proxied_requests import check_target, failure_of_proxy, proxy_arguments
from .request_count import count_request
from .session import parse_url

_MAX_REDIRECTS = 5
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PROBE_SECONDS = 5.0
_MAX_ATTEMPTS = 100
"""Attempts of one request on kept connections that turn out to be closed."""

_INVALID_IN_HEADER = re.compile(r"[^\t\x20-\x7e\x80-\U0010ffff]|[\ud800-\udfff]")
"""Characters that a field value must not contain (RFC 9110 section 5.5). Surrogates stand for bytes that are not
UTF-8."""


class UpstreamClient:
    """The HTTP client for all upstream hosts. With `offline` it sends nothing.

    `http` is for URLs of the configured registries, `guarded` for those that upstreams name, `downloads` for bodies
    that are received in a thread. With `guards_registries`, as for registries that clients named, not even a registry's
    own URLs may have local addresses.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        observer: Observer,
        breakers: CircuitBreakers,
        guarded: aiohttp.ClientSession,
        downloads: DownloadSession,
        *,
        guards_registries: bool = False,
    ) -> None:
        self.offline = False
        self.proxies = OutboundProxies()
        self.observer = observer
        self._http = http
        self._guarded = guarded
        self._downloads = downloads
        self._guards_registries = guards_registries
        self._local_registries = LocalRegistries()
        self._breakers = breakers

    def may_contact(self, url: URL) -> bool:
        """Whether a request to this host would be sent."""
        return not self.offline and self._breakers.open_reason(url.authority) is None

    @asynccontextmanager
    async def send(
        self,
        kind: str,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: bytes | None = None,
        *,
        named_by: URL,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request; does not follow redirects. `kind` is its label in metrics.

        `named_by` is the origin of the registry that named this URL, in a redirect or as its realm; for the registry's
        own URLs it is their origin. A registry must not name a local address unless it has one itself. Raises
        `BadUpstream` for such an address, `Unavailable` without a response or when none is to be expected. With an
        outbound proxy, which resolves names itself, only hosts that are IP addresses are checked.
        """
        response = await self._exchange(
            kind, url, headers, named_by, lambda session: self._request(session, kind, method, url, headers, body)
        )
        try:
            yield response
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    @asynccontextmanager
    async def download(
        self, kind: str, method: str, url: URL, headers: dict[str, str], *, named_by: URL
    ) -> AsyncIterator[DownloadResponse]:
        """Send one request as `send` does, for a body that is received in a thread; `method` is GET."""

        async def request(session: aiohttp.ClientSession) -> DownloadResponse:
            try:
                return await self._downloads.get(
                    url,
                    headers,
                    proxy=self.proxies.find(url.scheme, url.host or "", url.port),
                    guarded=session is not self._http,
                    named_by_client=self._guards_registries,
                )
            except aiohttp.ClientConnectorError as error:
                raise _refused_address(error, url) or error from error

        response = await self._exchange(kind, url, headers, named_by, request)
        try:
            yield response
        finally:
            response.release()

    async def _exchange[R: HttpResponse](
        self,
        kind: str,
        url: URL,
        headers: Mapping[str, str],
        named_by: URL,
        request: Callable[[aiohttp.ClientSession], Awaitable[R]],
    ) -> R:
        """Check whether a request may be sent, send it by `request`, and record its outcome."""
        host = url.authority
        if self.offline:
            raise UpstreamNotContacted("offline: upstreams are not contacted")
        _check_headers(headers)
        self._breakers.raise_if_open(host)
        session = await self._session(url, named_by)
        if session.closed:  # for which aiohttp raises `RuntimeError`
            raise Unavailable("the cache is shutting down")
        count_request()
        try:
            response = await request(session)
        except aiohttp.ClientConnectorCertificateError as error:  # before `ValueError`, which it is as well
            raise self._record_error(session, kind, url, error) from error
        except ValueError as error:  # raised only for a URL that an upstream named; nothing was sent
            raise BadUpstream("upstream named an invalid URL") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._record_error(session, kind, url, error) from error
        self.observer.upstream_answered(host, kind, str(response.status))
        if response.status >= 500:
            probe = self._probe(session, url)
            self._breakers.record_failure(host, f"status {response.status}", probe, of=_object_of(kind, url))
        else:
            self._breakers.record_success(host)
        return response

    @asynccontextmanager
    async def send_following_redirects[R: HttpResponse](
        self, kind: str, method: str, url: URL, headers: dict[str, str], send: Send[R]
    ) -> AsyncIterator[R]:
        """Send one request to a registry by `send`, and follow redirects; only the first origin receives
        `Authorization`."""
        origin = url.origin()
        for _ in range(_MAX_REDIRECTS + 1):
            async with send(kind, method, url, headers, named_by=origin) as response:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    yield response
                    return
            url = _redirect_target(url, location)
            if url.origin() != origin:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise BadUpstream("upstream redirects in a loop")

    async def _request(
        self,
        session: aiohttp.ClientSession,
        kind: str,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: bytes | None,
    ) -> aiohttp.ClientResponse:
        """Send a request, and repeat it where the server has closed a kept connection: it may have closed all of them.
        A request that may be sent twice is repeated until it is sent on a new connection (RFC 9112 section 9.3.1): one
        with a safe method, or a POST for a token, which changes no state that matters."""
        for _ in range(_MAX_ATTEMPTS):
            attempt = Attempt()
            try:
                return await session.request(
                    method,
                    url,
                    data=body,
                    allow_redirects=False,
                    trace_request_ctx=attempt,
                    **proxy_arguments(self.proxies, url, headers),
                )
            except aiohttp.ClientConnectorError as error:
                raise _refused_address(error, url) or error from error
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not attempt.reused or (method not in _SAFE_METHODS and kind != "token"):
                    raise
        raise aiohttp.ServerDisconnectedError

    async def _session(self, url: URL, named_by: URL) -> aiohttp.ClientSession:
        if self.proxies.find(url.scheme, url.host or "", url.port):
            check_target(url, named_by)
            return self._http
        if self._guards_registries:
            return self._guarded
        may_be_local = url.origin() == named_by.origin() or await self._local_registries.is_local(named_by)
        return self._http if may_be_local else self._guarded

    def _record_error(
        self, session: aiohttp.ClientSession, kind: str, url: URL, error: aiohttp.ClientError | TimeoutError
    ) -> Unavailable:
        """Record a request without a response, as a failure of the host if there was no connection, else as a failure
        of the requested object. Return the error to raise."""
        self.observer.upstream_answered(url.authority, kind, "error")
        timed_out = isinstance(error, TimeoutError)
        proxy = self.proxies.find(url.scheme, url.host or "", url.port)
        proxy_failure = failure_of_proxy(proxy, error) if proxy is not None else None
        reason = proxy_failure or describe(error)
        no_connection = proxy_failure or isinstance(
            error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
        )
        of = None if no_connection else _object_of(kind, url)
        self._breakers.record_failure(url.authority, reason, self._probe(session, url), of=of, at_once=timed_out)
        return Unavailable(f"{url.authority} cannot be reached: {reason}")

    def _probe(self, session: aiohttp.ClientSession, url: URL) -> Probe:
        """Return a probe that requests the API's root: any status below 500 shows that the host works.

        It uses the session of the failed request: a probe must not connect to an address that the request could not.
        """
        target = url.origin() / "v2/"

        async def probe() -> bool:
            if self.offline or session.closed:
                return False
            try:
                timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
                arguments = proxy_arguments(self.proxies, target, {}) | {"timeout": timeout}
                async with session.get(target, allow_redirects=False, **arguments) as response:
                    self.observer.upstream_answered(url.authority, "probe", str(response.status))
                    return response.status < 500
            except (aiohttp.ClientError, TimeoutError):
                self.observer.upstream_answered(url.authority, "probe", "error")
                return False

        return probe


def _refused_address(error: aiohttp.ClientConnectorError, url: URL) -> BadUpstream | None:
    """Return the error for an address that is not connected to; None for other errors."""
    is_refused = REFUSED_ADDRESS in str(error.os_error)
    return BadUpstream(f"upstream names {REFUSED_ADDRESS}", {"host": url.host}) if is_refused else None


def _object_of(kind: str, url: URL) -> str:
    """Return the name of the requested object for the circuit breaker: the path without its query, which may contain a
    signature; for a token the path and the query, which contains the scope."""
    return url.path_qs if kind == "token" else url.path


def _check_headers(headers: Mapping[str, str]) -> None:
    """Raise `HeaderInvalid` for a value that the HTTP client refuses to send.

    Clients are refused such headers before a request reaches this point. If one counted as an upstream failure, a
    client could open the circuit of a registry.
    """
    for name, value in headers.items():
        if _INVALID_IN_HEADER.search(value):
            raise HeaderInvalid(f"the value of {name} is malformed")


def _redirect_target(url: URL, location: str) -> URL:
    """Return the URL of a `Location` (RFC 9110 section 10.2.2), its escapes unchanged since they may be signed; raises
    `BadUpstream` for one that must not be followed."""
    try:
        target = url.join(parse_url(location, encoded=True))
        usable = target.host is not None and target.scheme in ("http", "https") and target.port
    except ValueError as error:
        raise BadUpstream("upstream redirects to something that is not a URL") from error
    if not usable:
        raise BadUpstream("upstream redirects to something that is not an http URL")
    if url.scheme == "https" and target.scheme == "http":
        raise BadUpstream("upstream redirects from https to http")
    return target
