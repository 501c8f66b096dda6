"""Facts about tags are stored by registry, repository and tag."""

import asyncio
import time
from pathlib import Path

from hubcache.decide.records import TagRecord
from hubcache.decide.tag_changes import TagChanges
from hubcache.oci.digest import Digest
from support.stores import opened_store

NOW = time.time()
HUB = "registry-1.docker.io"


async def test_tags_are_stored_by_negotiation_until_dropped(tmp_path: Path) -> None:
    index, single = (TagRecord(Digest.of(text), "a/b", 1, NOW) for text in (b"index", b"single"))
    async with opened_store(tmp_path) as store:
        await store.tags.put(HUB, "library/debian", "stable", "index", index)
        await store.tags.put(HUB, "library/debian", "stable", "single", single)
        await store.tags.put("ghcr.io", "library/debian", "stable", "index", single)
    async with opened_store(tmp_path) as store:
        assert store.tags.get(HUB, "library/debian", "stable") == {"index": index, "single": single}
        await store.tags.drop(HUB, "library/debian", "stable")
        assert store.tags.get(HUB, "library/debian", "stable") == {}
        assert store.tags.get("ghcr.io", "library/debian", "stable") == {"index": single}


async def test_concurrent_writes_of_two_negotiations_are_both_stored(tmp_path: Path) -> None:
    record = TagRecord(Digest.of(b"m"), "a/b", 1, NOW)
    async with opened_store(tmp_path) as store:
        await asyncio.gather(*(store.tags.put(HUB, "a", "latest", accept, record) for accept in ("one", "two")))
        assert set(store.tags.get(HUB, "a", "latest")) == {"one", "two"}


async def test_changes_of_tags_are_stored(tmp_path: Path) -> None:
    changes = TagChanges(NOW - 100.0, (NOW - 50.0, NOW))
    async with opened_store(tmp_path) as store:
        await store.tags.put_changes(
            {(HUB, "library/debian", "stable"): changes, (HUB, "library/debian", "12"): TagChanges(NOW)}
        )
    async with opened_store(tmp_path) as store:
        assert store.tags.changes(HUB, "library/debian", "stable") == changes
        assert store.tags.changes(HUB, "library/debian", "12") == TagChanges(NOW)
        assert store.tags.changes("ghcr.io", "library/debian", "stable") is None


async def test_malformed_row_of_changes_is_ignored(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        store.index.opened().set(f"moves/{HUB}/library/debian:stable", "{}")
        assert store.tags.changes(HUB, "library/debian", "stable") is None
