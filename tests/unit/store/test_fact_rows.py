"""Facts about stored content are renewed, and malformed rows are ignored."""

import time
from pathlib import Path

import pytest
from hubcache.decide.records import Link, TagRecord, Visibility
from hubcache.decide.tag_changes import TagChanges
from hubcache.oci.digest import Digest
from hubcache.oci.image_name import ImageName
from hubcache.store import fact_rows
from support.stores import opened_store, put_blob

NOW = time.time()
HUB = "registry-1.docker.io"


async def test_facts_about_stored_content_outlive_their_lifetime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts are not written again during a long outage or offline, and links are written only once."""
    monkeypatch.setattr(fact_rows, "FACT_LIFETIME", 1000.0)
    async with opened_store(tmp_path) as store:
        stored, absent = await put_blob(store, b"stored"), Digest.of(b"absent")
        for name, digest in (("stored", stored), ("other", absent)):
            await store.links.put(HUB, name, {digest: 4})
            await store.tags.put(HUB, name, "1", "any", TagRecord(digest, "a/b", 4, NOW))
            await store.registries.put_visibility(HUB, name, Visibility(True, NOW))
            await store.tags.put_changes({(HUB, name, "1"): TagChanges(NOW), (HUB, name, "elsewhere"): TagChanges(NOW)})
        monkeypatch.setattr(fact_rows, "FACT_LIFETIME", 100_000.0)
        await store.expire()
        monkeypatch.setattr(time, "time", lambda: NOW + 50_000.0)
        await store.expire()
        assert store.links.get(HUB, "stored", stored) == Link(4)
        assert store.tags.get(HUB, "stored", "1")
        assert store.registries.visibility(HUB, "stored") == Visibility(True, NOW)
        assert store.tags.changes(HUB, "stored", "1") == TagChanges(NOW)
        assert store.tags.changes(HUB, "stored", "elsewhere") is None
        assert store.tags.changes(HUB, "other", "1") is None
        assert store.links.get(HUB, "other", absent) is None
        assert not store.tags.get(HUB, "other", "1")
        assert store.registries.visibility(HUB, "other") is None


@pytest.mark.parametrize("row", ["", "{", "[]", "{}", "7", '{"a": [1]}', '[["x"]]', "null"])
async def test_malformed_rows_are_ignored(tmp_path: Path, row: str) -> None:
    digest, app = Digest.of(b"layer"), "library/app"
    async with opened_store(tmp_path) as store:
        stored = await put_blob(store, b"layer")
        for key in (
            f"tag/{HUB}/{app}:1",
            f"link/{HUB}/{app}@{digest}",
            f"referrers/{HUB}/{app}@{digest}",
            f"repository/{HUB}/{app}",
            f"moves/{HUB}/{app}:1",
            f"private/{digest}",
        ):
            store.index.opened().set(key, row, 1000.0)
        assert not any(tag for tag in store.tags.get(HUB, app, "1").values())
        assert store.private.sources(digest) is not None, "what cannot be read may be private"
        assert not (store.registries.visibility(HUB, app) or Visibility(False, NOW)).public
        await store.private.add_repository(HUB, app)
        await store.links.put(HUB, app, {digest: 5})
        await store.tags.drop_pointing_to(HUB, app, digest)
        await store.expire()
        store.pins.configured = (ImageName(HUB, app, "1"),)
        await store.maintain()
        assert store.has(stored)
