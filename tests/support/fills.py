"""Fills with a store and an upstream."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import HubcacheError
from hubcache.store.store import Store
from hubcache.transfer import fills as fills_module
from hubcache.transfer.fill import Fill
from hubcache.transfer.fills import Fills
from hubcache.transfer.sources import FillSource, UpstreamSource

from support.standin import Hub, random_bytes
from support.stores import files_below, opened_store
from support.time_outs import short_time_outs
from support.upstreams import UpstreamSetup, upstream_to

REPO = "library/debian"
LAYER = random_bytes(700_000, "layer")
DIGEST = Digest.of(LAYER)


@dataclass
class FillHarness:
    """A store, its fills, and the upstream that they download from."""

    store: Store
    fills: Fills
    line: UpstreamSetup
    directory: Path

    def start(self, size: int | None = None) -> Fill:
        return self.fills.start(DIGEST, size, lambda start: self.line.upstream.download_blob(REPO, DIGEST, start))

    def reader(self, fill: Fill, start: int = 0, end: int = len(LAYER)) -> FillSource:
        def fallback(at: int, until: int) -> UpstreamSource:
            return UpstreamSource(lambda a, b: self.line.upstream.open_blob(REPO, DIGEST, a, b), at, until)

        assert fill.staged is not None
        return FillSource(fill, fill.staged.path, os.dup(fill.staged.fd), start, end, fallback)

    async def read(self, fill: Fill, start: int = 0, end: int = len(LAYER)) -> bytes:
        await fill.wait_opened()
        source = self.reader(fill, start, end)
        try:
            parts = []
            while not source.finished:
                parts.append(await source.read())
            return b"".join(parts)
        finally:
            await source.close()

    async def failure(self, fill: Fill) -> HubcacheError:
        """Wait until the fill has failed, and return its error."""
        with pytest.raises(HubcacheError) as caught:
            await fill.wait_stored()
        return caught.value

    def has_left_nothing(self) -> bool:
        """Whether store, usage and staging contain nothing of the blob, and no fill runs."""
        return (
            not self.store.has(DIGEST)
            and self.store.usage.used == 0
            and files_below(self.directory / "staging") + files_below(self.directory / "store/blobs") == []
            and self.fills.get(DIGEST) is None
        )


def fill_harness_fixture() -> Any:
    """Return a fixture for such a harness, with short back-off and time-outs."""

    @pytest.fixture
    async def harness(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FillHarness]:
        monkeypatch.setattr(fills_module, "_BACKOFF_SECONDS", 0.005)
        short_time_outs(monkeypatch)
        hub.image(REPO, "stable", [LAYER])
        async with opened_store(tmp_path) as store, upstream_to(hub) as line:
            fills = Fills(store, line.seen, store.index.staging_failed)
            yield FillHarness(store, fills, line, tmp_path)
            await fills.close()

    return harness
