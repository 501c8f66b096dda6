"""Writes that may fail: a storage error is reported and the pull continues."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hubcache.decide.records import Link, ManifestRecord, TagRecord, Visibility
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.serve.best_effort import BestEffortWriter
from hubcache.store.store import Store
from support.stores import manifest_of, opened_store

HOST, REPO = "registry-1.docker.io", "library/app"
BODY = manifest_of()
DIGEST = Digest.of(BODY)
RECORD = TagRecord(DIGEST, "application/json", len(BODY), 1000.0)


async def test_facts_are_written_to_the_store(tmp_path: Path) -> None:
    failures: list[StorageError] = []
    async with opened_store(tmp_path) as store:
        writer = BestEffortWriter(store, failures.append)
        assert await writer.put_manifest(DIGEST, ManifestRecord("application/json", BODY))
        await writer.put_tag(HOST, REPO, "latest", "*/*", RECORD, writer.change_number(HOST, REPO, "latest"))
        await writer.put_links(HOST, REPO, {DIGEST: 5})
        await writer.put_visibility(HOST, REPO, Visibility(True, 1000.0))
        await writer.put_challenge(HOST, "Bearer realm=x")
        assert store.manifest(DIGEST) == ManifestRecord("application/json", BODY)
        assert store.tags.get(HOST, REPO, "latest") == {"*/*": RECORD}
        link, visibility = store.links.get(HOST, REPO, DIGEST), store.registries.visibility(HOST, REPO)
        assert link is not None
        assert link.size == 5
        assert visibility == Visibility(True, 1000.0)
        assert store.registries.challenge(HOST) == "Bearer realm=x"
    assert failures == []


async def test_tag_that_changed_meanwhile_is_not_written(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        writer = BestEffortWriter(store, lambda _: None)
        before = writer.change_number(HOST, REPO, "latest")
        await writer.drop_tag(HOST, REPO, "latest")
        await writer.put_tag(HOST, REPO, "latest", "*/*", RECORD, before)
        assert store.tags.get(HOST, REPO, "latest") == {}
        await writer.put_tag(HOST, REPO, "latest", "*/*", RECORD, writer.change_number(HOST, REPO, "latest"))
        assert store.tags.get(HOST, REPO, "latest") == {"*/*": RECORD}


async def test_change_of_one_tag_does_not_affect_others(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        writer = BestEffortWriter(store, lambda _: None)
        for host, repo, tag in ((HOST, REPO, "other"), (HOST, "library/other", "latest"), ("ghcr.io", REPO, "latest")):
            before = writer.change_number(host, repo, tag)
            await writer.drop_tag(HOST, REPO, "latest")
            assert writer.change_number(host, repo, tag) == before


async def test_known_links_are_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_store(tmp_path) as store:
        writer, written = BestEffortWriter(store, lambda _: None), []
        original = store.index.write

        async def write(action: Callable[[], object]) -> object:
            written.append(action)
            return await original(action)

        monkeypatch.setattr(store.index, "write", write)
        for confirmed in (False, False, True, True, False):
            await writer.put_links(HOST, REPO, {DIGEST: None if confirmed else 5}, confirmed=confirmed)
        assert len(written) == 2
        assert store.links.get(HOST, REPO, DIGEST) == Link(5, confirmed=True)


async def test_store_error_is_reported_and_not_raised(tmp_path: Path) -> None:
    failures: list[StorageError] = []
    writer = BestEffortWriter(Store(tmp_path, 1 << 20), failures.append)  # the store is not open
    assert not await writer.put_manifest(DIGEST, ManifestRecord("application/json", BODY))
    await writer.put_tag(HOST, REPO, "latest", "*/*", RECORD, 0)
    await writer.drop_tag(HOST, REPO, "latest")
    await writer.put_links(HOST, REPO, {DIGEST: None})
    await writer.put_visibility(HOST, REPO, Visibility(False, 0.0))
    await writer.put_challenge(HOST, "Bearer realm=x")
    assert len(failures) == 6


async def test_registry_that_delivered_private_content_is_recorded_as_source(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        writer = BestEffortWriter(store, lambda _: None)
        assert await writer.record_source("ghcr.io", REPO, DIGEST, 5)
        assert store.private.sources(DIGEST) is None, "anybody could read it"
        assert await writer.record_source(HOST, REPO, DIGEST, None, private=True)
        assert store.private.sources(DIGEST) == {HOST}
        assert await writer.record_source("ghcr.io", REPO, DIGEST, None)
        assert store.private.sources(DIGEST) == {HOST, "ghcr.io"}
        link = store.links.get("ghcr.io", REPO, DIGEST)
        assert link is not None
        assert (link.size, link.given) == (5, True)


async def test_source_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    writer = BestEffortWriter(Store(tmp_path, 1 << 20), lambda _: None)  # the store is not open
    assert not await writer.record_source(HOST, REPO, DIGEST, None, private=True)
