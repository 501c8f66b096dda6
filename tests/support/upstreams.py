"""Upstreams that are connected to the stand-in Hub."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from hubcache.oci.account import Account
from hubcache.oci.digest import Digest
from hubcache.oci.errors import HubcacheError
from hubcache.oci.registry import Registry
from hubcache.transfer.breaker import CircuitBreakers
from hubcache.transfer.challenge import Challenge
from hubcache.transfer.download_response import DownloadResponse
from hubcache.transfer.download_session import DownloadSession
from hubcache.transfer.session import open_download_session, open_session
from hubcache.transfer.tokens import Tokens
from hubcache.transfer.upstream import Upstream
from hubcache.transfer.upstream_client import UpstreamClient
from yarl import URL

from support.standin import Hub


@dataclass
class RecordingObserver:
    """An `Observer` that records its calls."""

    answers: list[tuple[str, str]] = field(default_factory=list)
    received: int = 0
    limits: list[tuple[str, int | None, int]] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)
    ended: list[HubcacheError | None] = field(default_factory=list)

    def upstream_answered(self, host: str, kind: str, status: str) -> None:
        self.answers.append((kind, status))

    def upstream_bytes(self, host: str, count: int) -> None:
        self.received += count

    def rate_limit_seen(self, host: str, credential: str, limit: int | None, remaining: int) -> None:
        self.limits.append((credential, limit, remaining))

    def fills_changed(self, in_flight: int) -> None:
        self.in_flight.append(in_flight)

    def fill_ended(self, digest: Digest, error: HubcacheError | None) -> None:
        self.ended.append(error)


@dataclass
class UpstreamSetup:
    """An upstream and the objects that it uses; `learned` are the challenges that it reported."""

    upstream: Upstream
    tokens: Tokens
    client: UpstreamClient
    http: aiohttp.ClientSession
    seen: RecordingObserver
    learned: list[Challenge]


@asynccontextmanager
async def upstream_to(
    hub: Hub, address: str | None = None, account: Account | None = None
) -> AsyncIterator[UpstreamSetup]:
    """Connect an upstream to the stand-in Hub (or to `address`)."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if hub.ca_file is not None:
        tls.load_verify_locations(hub.ca_file)
    http, seen, breakers, learned = (
        open_session(tls, "hubcache-test"),
        RecordingObserver(),
        CircuitBreakers(),
        list[Challenge](),
    )
    guarded = open_session(tls, "hubcache-test", guarded=True)
    downloads = open_download_session(tls, "hubcache-test")
    client = UpstreamClient(http, seen, breakers, guarded, downloads)
    tokens = Tokens(client)
    registry = Registry.parse(f"registry-1.docker.io={address or hub.url()}")
    upstream = Upstream(registry, client, tokens, lambda _, challenge: learned.append(challenge), account)
    try:
        yield UpstreamSetup(upstream, tokens, client, http, seen, learned)
    finally:
        await breakers.close()
        await guarded.close()
        await http.close()
        downloads.close()


def tokens_sent(hub: Hub, **wanted: str) -> list[str | None]:
    """Return the `Authorization` headers of the requests that match."""
    return [record.authorization for record in hub.requests(**wanted)]


def record_requests(patch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the host of each request for a client is added when it is sent, also if it never arrives.

    Probes of circuit breakers are not added.
    """
    hosts: list[str] = []
    request: Any = UpstreamClient._request

    async def record(
        client: UpstreamClient, session: aiohttp.ClientSession, kind: str, method: str, url: URL, *rest: Any
    ) -> aiohttp.ClientResponse:
        hosts.append(url.authority)
        answer: aiohttp.ClientResponse = await request(client, session, kind, method, url, *rest)
        return answer

    patch.setattr(UpstreamClient, "_request", record)
    get: Any = DownloadSession.get

    async def record_download(session: DownloadSession, url: URL, *rest: Any, **more: Any) -> DownloadResponse:
        hosts.append(url.authority)
        answer: DownloadResponse = await get(session, url, *rest, **more)
        return answer

    patch.setattr(DownloadSession, "get", record_download)
    return hosts
