"""The status report collects what the other parts know."""

import json
from pathlib import Path

from hubcache.operate.metrics import Metrics
from hubcache.operate.status_report import StatusReport
from hubcache.transfer.breaker import CircuitBreakers
from support.stores import opened_store, put_blob


async def test_public_snapshot_has_no_paths(tmp_path: Path) -> None:
    async with opened_store(tmp_path / "store") as store:
        digest = await put_blob(store, b"x" * 1000)
        path = store.blob_path(digest)
        assert path is not None
        await store.damage.quarantine(digest, path, "does not match its digest")
        report = StatusReport(store, Metrics(), CircuitBreakers())
        assert str(tmp_path) in json.dumps(report.snapshot(public=False))
        assert str(tmp_path) not in json.dumps(report.snapshot(public=True))
