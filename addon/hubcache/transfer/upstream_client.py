"""Sends the cache's own requests: circuit breaker, time-outs, redirects, and what must be observed on each answer."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from ..oci.errors import BadUpstream, HeaderInvalid, Unavailable, UpstreamNotContacted
from .breaker import CircuitBreakers, Probe
from .connector import REFUSED_ADDRESS, Attempt
from .local_registries import LocalRegistries
from .observer import Observer
from .session import parse_url

_MAX_REDIRECTS = 5
_SAFE = frozenset({"GET", "HEAD"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PROBE_SECONDS = 5.0
_MAX_STALE = 100
"""Kept connections in a row that may turn out to be closed; the last attempt is on a new one all the same."""

_UNSENDABLE = re.compile(r"[^\t\x20-\x7e\x80-\U0010ffff]|[\ud800-\udfff]")
"""RFC 9110 section 5.5: no control characters in a field value. Surrogates stand for bytes that are not UTF-8."""


class UpstreamClient:
    """One for all upstream hosts. With `offline` nothing is ever sent.

    `http` is for the addresses of the configured registries, `guarded` for those that upstreams name.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        observer: Observer,
        breakers: CircuitBreakers,
        guarded: aiohttp.ClientSession | None = None,
    ) -> None:
        self.offline = False
        self.observer = observer
        self._http = http
        self._guarded = guarded or http
        self._homes = LocalRegistries()
        self._breakers = breakers

    def may_contact(self, url: URL) -> bool:
        """Whether a request to this host would be tried."""
        return not self.offline and self._breakers.open_reason(url.authority) is None

    @asynccontextmanager
    async def send(
        self,
        kind: str,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: bytes | None = None,
        home: URL | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request without redirects; raises `Unavailable` when there is no answer, or none is to be expected.

        `home` is the registry that named this address (None: it is the registry's own). It may name no address of
        this machine or its link, unless it is at such a one itself: `BadUpstream`.
        """
        host = url.authority
        if self.offline:
            raise UpstreamNotContacted("offline: upstreams are not contacted")
        _refuse_unsendable(headers)
        self._breakers.raise_if_open(host)
        session = await self._session(url, home)
        if session.closed:  # aiohttp has no error of its own for this
            raise Unavailable("the cache is shutting down")
        try:
            response = await self._ask(session, kind, method, url, headers, body)
        except ValueError as error:  # only for a URL: the upstream's, by a redirect or a realm; nothing was sent
            raise BadUpstream("upstream named a URL that cannot be asked for") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            self.observer.upstream_answered(host, kind, "error")
            raise self._unreachable(session, kind, url, error) from error
        self.observer.upstream_answered(host, kind, str(response.status))
        if response.status >= 500:
            probe = self._probe(session, url)
            self._breakers.record_failure(host, f"status {response.status}", probe, of=_object(kind, url))
        else:
            self._breakers.record_success(host)
        try:
            yield response
        finally:
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    def _unreachable(
        self, session: aiohttp.ClientSession, kind: str, url: URL, error: aiohttp.ClientError | TimeoutError
    ) -> Unavailable:
        """Count a request without an answer, against the host where there was not even a connection."""
        slow = isinstance(error, TimeoutError)
        failure = "time-out" if slow else type(error).__name__
        no_connection = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        of = None if no_connection else _object(kind, url)
        self._breakers.record_failure(url.authority, failure, self._probe(session, url), of=of, at_once=slow)
        return Unavailable(f"{url.authority} cannot be reached: {failure}")

    @asynccontextmanager
    async def send_following_redirects(
        self, kind: str, method: str, url: URL, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request and the redirects it leads to; `Authorization` is for the first origin only."""
        origin = url.origin()
        for _ in range(_MAX_REDIRECTS + 1):
            async with self.send(kind, method, url, headers, home=origin) as response:
                target = response.headers.get("Location")
                if response.status not in _REDIRECTS or target is None:
                    yield response
                    return
            url = _redirect(url, target)
            if url.origin() != origin:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise BadUpstream("upstream redirects in a loop")

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        kind: str,
        method: str,
        url: URL,
        headers: dict[str, str],
        body: bytes | None,
    ) -> aiohttp.ClientResponse:
        """The answer. The server may have closed a kept connection meanwhile, and all others with it: a request that
        may be sent twice is sent again until it goes out on a new connection (RFC 9112 section 9.3.1). Such are those
        of safe methods, and a POST for a token, which changes nothing that matters."""
        for _ in range(_MAX_STALE):
            attempt = Attempt()
            try:
                return await session.request(
                    method, url, headers=headers, data=body, allow_redirects=False, trace_request_ctx=attempt
                )
            except aiohttp.ClientConnectorError as error:
                if REFUSED_ADDRESS in str(error.os_error):
                    raise BadUpstream(f"upstream names {REFUSED_ADDRESS}", {"host": url.host}) from error
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not attempt.reused or (method not in _SAFE and kind != "token"):
                    raise
        raise aiohttp.ServerDisconnectedError

    async def _session(self, url: URL, home: URL | None) -> aiohttp.ClientSession:
        is_free = home is None or url.origin() == home.origin() or await self._homes.is_local(home)
        return self._http if is_free else self._guarded

    def _probe(self, session: aiohttp.ClientSession, url: URL) -> Probe:
        """Ask for the API's root: any answer below 500 shows that somebody is there. By the session of the request
        that failed: a probe may go no further than that."""
        target = url.origin() / "v2/"

        async def ask() -> bool:
            if self.offline or session.closed:
                return False
            try:
                timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
                async with session.get(target, timeout=timeout, allow_redirects=False) as response:
                    self.observer.upstream_answered(url.authority, "probe", str(response.status))
                    return response.status < 500
            except (aiohttp.ClientError, TimeoutError):
                self.observer.upstream_answered(url.authority, "probe", "error")
                return False

        return ask


def _object(kind: str, url: URL) -> str:
    """What a failure is about: the path, for signatures are in the query; but that is what a token is asked for by."""
    return url.path_qs if kind == "token" else url.path


def _refuse_unsendable(headers: Mapping[str, str]) -> None:
    """Raise `HeaderInvalid` for what the HTTP client would not send. It is refused to the client before it comes here:
    were it taken for a failure of the upstream, one client could make the cache believe that a registry is down."""
    for name, value in headers.items():
        if _UNSENDABLE.search(value):
            raise HeaderInvalid(f"the value of {name} is malformed")


def _redirect(url: URL, target: str) -> URL:
    """The next URL, its signature untouched; raises `BadUpstream` for one that must not be followed."""
    try:
        following = url.join(parse_url(target, encoded=True))
        usable = following.host is not None and following.scheme in ("http", "https") and following.port
    except ValueError as error:
        raise BadUpstream("upstream redirects to something that is not a URL") from error
    if not usable:
        raise BadUpstream("upstream redirects to something that is not an http URL")
    if url.scheme == "https" and following.scheme == "http":
        raise BadUpstream("upstream redirects from https to http")
    return following
