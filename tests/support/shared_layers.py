"""A layer that nodes of a fleet share: the fixture `fleet`, pulls of the layer, and the requests that these cost."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hubcache.fleet import keys, peer_server, shared_blobs, values
from hubcache.oci.digest import Digest
from hubcache.transfer import fills as fills_module

from support.fleet_nodes import REPO, SharingFleet, SharingNode
from support.standin import Hub, random_bytes

LAYER = random_bytes(3_000_000, "layer")
DIGEST = Digest.of(LAYER)
KEY = keys.blob(DIGEST)


def sharing_fleet_fixture() -> Any:
    """Return a fixture for a fleet whose registry has one layer, with short pauses."""

    @pytest.fixture
    def fleet(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharingFleet:
        monkeypatch.setattr(fills_module, "_BACKOFF_SECONDS", 0.005)
        monkeypatch.setattr(peer_server, "_SHUTDOWN_SECONDS", 0.05)
        monkeypatch.setattr(shared_blobs, "_FIRST_PAUSE", 0.005)
        monkeypatch.setattr(shared_blobs, "_LONGEST_PAUSE", 0.02)
        hub.image(REPO, "1", [LAYER])
        return SharingFleet(hub, tmp_path, monkeypatch)

    return fleet


async def pull_all(nodes: list[SharingNode], clients: int = 1) -> None:
    """Pull the layer through all nodes at once, by several clients of each."""
    pulled = await asyncio.gather(*(node.pull(DIGEST) for node in nodes for _ in range(clients)))
    assert all(data == LAYER for data in pulled)


def resumed_at(fleet: SharingFleet, number: int = 1) -> int:
    """Return the first byte that a request for the layer to the registry asked for."""
    ranges = [record.header("Range") for record in fleet.hub.requests(kind="cdn")]
    assert len(ranges) == number + 1
    header = ranges[number]
    assert header is not None
    return int(header.removeprefix("bytes=").partition("-")[0])


async def hold_lease(fleet: SharingFleet, digest: Digest, address: str = "") -> None:
    """Have a node, which cannot be reached if it has no address, hold the lease of a blob."""
    value = values.encode_value({"node": "elsewhere", "address": address, "token": "x"})
    await fleet.bucket.put(keys.lease(f"blob/{digest}"), value)
