"""Request counts are written in batches."""

import time
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from support.stores import opened_store


async def test_request_counts_survive_a_restart(tmp_path: Path) -> None:
    digest = Digest.of(b"image")
    async with opened_store(tmp_path) as store:
        store.popularity.count_request(digest)
        store.popularity.count_request(digest)
    async with opened_store(tmp_path) as store:
        assert store.capacity.retention.requests(digest, time.time()) == pytest.approx(2.0, abs=0.01)


async def test_requests_are_reported_to_others_who_count_them(tmp_path: Path) -> None:
    reported: list[Digest] = []
    digest = Digest.of(b"image")
    async with opened_store(tmp_path) as store:
        store.popularity.count_request(digest)
        store.popularity.on_request = reported.append
        store.popularity.count_request(digest)
    assert reported == [digest]
