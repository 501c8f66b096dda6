"""An upstream of an image with one layer, and reads of that layer."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.media import COMMON_TYPES
from hubcache.transfer import upstream as upstream_module

from support.standin import Hub, random_bytes
from support.time_outs import short_time_outs
from support.upstreams import UpstreamSetup, upstream_to

REPO = "library/debian"
ACCEPT = ", ".join(COMMON_TYPES)
LAYER = random_bytes(300_000, "layer")
DIGEST = Digest.of(LAYER)


async def read_blob(line: UpstreamSetup, start: int = 0, end: int | None = None) -> bytes:
    async with line.upstream.open_blob(REPO, DIGEST, start, end) as body:
        return b"".join([chunk async for chunk in body.chunks()])


async def download_blob(line: UpstreamSetup, start: int = 0) -> bytes:
    received = bytearray()
    async with line.upstream.download_blob(REPO, DIGEST, start) as body:
        assert body.start == start
        while not await body.receive(lambda data: bool(received.extend(data)), lambda: None):
            pass  # `consume` returned False, since `extend` returns None: the body continues where it stopped
    return bytes(received)


def upstream_fixtures() -> tuple[Any, Any]:
    """Return the fixtures `short_waits`, for all tests of a module, and `line`."""

    @pytest.fixture(autouse=True)
    def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
        """Short waits, so that the tests are fast."""
        monkeypatch.setattr(upstream_module, "_BACKOFF_SECONDS", 0.01)
        short_time_outs(monkeypatch)

    @pytest.fixture
    async def line(hub: Hub) -> AsyncIterator[UpstreamSetup]:
        hub.image(REPO, "stable", [LAYER])
        async with upstream_to(hub) as opened:
            yield opened

    return short_waits, line
