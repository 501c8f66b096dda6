"""What the tests of the lower wings share: a store, content for it, and an upstream that is the stand-in Hub."""

import json
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from hubcache.decide.records import ManifestRecord
from hubcache.oci.account import Account
from hubcache.oci.digest import Digest
from hubcache.oci.errors import HubcacheError
from hubcache.oci.media import OCI_MANIFEST
from hubcache.oci.registry import Registry
from hubcache.store.store import Store
from hubcache.transfer.breaker import CircuitBreakers
from hubcache.transfer.challenge import Challenge
from hubcache.transfer.session import open_session
from hubcache.transfer.tokens import Tokens
from hubcache.transfer.upstream import Upstream
from hubcache.transfer.upstream_client import UpstreamClient

from support.standin import Hub

MIB = 1 << 20


@dataclass
class Recorder:
    """An `Observer` that remembers."""

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


@asynccontextmanager
async def opened_store(directory: Path, capacity: int = 64 * MIB) -> AsyncIterator[Store]:
    """A store that is open, and closed at the end."""
    store = Store(directory, capacity)
    try:
        store.open()
        yield store
    finally:
        await store.close()


async def put_blob(store: Store, data: bytes) -> Digest:
    """Stage, write and commit `data`."""
    digest = Digest.of(data)
    staged = await store.stage(digest, len(data))
    try:
        staged.write(data)
        await store.commit(staged)
    finally:
        store.finish(staged)
    return digest


async def put_image(store: Store, *layers: bytes, note: str = "") -> tuple[Digest, list[Digest]]:
    """Store an image; returns its digest and those of its layers."""
    digests = [await put_blob(store, layer) for layer in layers]
    record = ManifestRecord(OCI_MANIFEST, manifest_of(*zip(digests, map(len, layers), strict=True), note=note))
    digest = Digest.of(record.body)
    await store.put_manifest(digest, record)
    return digest, digests


def manifest_of(*layers: tuple[Digest, int], note: str = "") -> bytes:
    """An image manifest without a config."""
    document = {"layers": [{"digest": str(digest), "size": size} for digest, size in layers], "note": note}
    return json.dumps(document).encode()


def files_below(directory: Path) -> list[Path]:
    """All files, in no order."""
    return [Path(folder, name) for folder, _, names in os.walk(directory) for name in names]


def bytes_on_disk(directory: Path) -> int:
    """What the cap is about: content as long as it is, the index as it is on disk (its log has holes)."""
    sizes: dict[int, int] = {}
    """By the file, which has two names for a moment."""
    for path in files_below(directory):
        try:
            state = path.stat()
        except FileNotFoundError:  # just removed by the writer thread
            continue
        sizes[state.st_ino] = state.st_blocks * 512 if path.name.startswith("cache.db") else state.st_size
    return sum(sizes.values())


@dataclass
class Line:
    """An upstream together with what it is made of."""

    upstream: Upstream
    tokens: Tokens
    client: UpstreamClient
    http: aiohttp.ClientSession
    seen: Recorder
    learned: list[Challenge]


@asynccontextmanager
async def line_to(hub: Hub, address: str | None = None, account: Account | None = None) -> AsyncIterator[Line]:
    """The cache's own client, pointed at the stand-in Hub (or at `address`)."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if hub.ca_file is not None:
        tls.load_verify_locations(hub.ca_file)
    http, seen, breakers, learned = open_session(tls, "hubcache-test"), Recorder(), CircuitBreakers(), list[Challenge]()
    guarded = open_session(tls, "hubcache-test", guarded=True)
    client = UpstreamClient(http, seen, breakers, guarded)
    tokens = Tokens(client)
    registry = Registry.parse(f"registry-1.docker.io={address or hub.url()}")
    upstream = Upstream(registry, client, tokens, lambda _, challenge: learned.append(challenge), account)
    try:
        yield Line(upstream, tokens, client, http, seen, learned)
    finally:
        await breakers.close()
        await guarded.close()
        await http.close()


def tokens_sent(hub: Hub, **wanted: str) -> list[str | None]:
    """The `Authorization` headers of the requests that match."""
    return [record.authorization for record in hub.requests(**wanted)]
