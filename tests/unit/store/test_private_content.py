"""Private content stays private, and its sources are stored."""

import time
from pathlib import Path

import pytest
from hubcache.decide.records import Visibility
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.store import fact_rows
from support.stores import opened_store, put_blob

NOW = time.time()
HUB = "registry-1.docker.io"


async def test_content_of_a_private_repository_is_private_unless_a_public_one_has_it(tmp_path: Path) -> None:
    own, shared, named, other = (Digest.of(text) for text in (b"own", b"shared", b"named", b"other"))
    async with opened_store(tmp_path) as store:
        await store.registries.put_visibility(HUB, "library/app", Visibility(True, NOW))
        await store.registries.put_visibility(HUB, "bob/hidden", Visibility(False, NOW))
        await store.links.put(HUB, "alice/app", {own: 1, shared: 1, named: 1, other: 1})
        await store.links.put(HUB, "library/app", {shared: 1})
        await store.links.put(HUB, "library/app", {named: 1}, confirmed=False)
        await store.links.put(HUB, "bob/hidden", {other: 1})
        await store.private.add_repository(HUB, "alice/app")
        hidden = {digest for digest in (own, shared, named, other) if store.private.has(digest)}
        assert hidden == {own, named, other}


async def test_sources_of_private_content_are_the_registries_that_gave_it(tmp_path: Path) -> None:
    """A registry that only confirms a link is not a source; private content may have no known source."""
    given, only_confirmed, elsewhere = (Digest.of(text) for text in (b"given", b"confirmed", b"elsewhere"))
    async with opened_store(tmp_path) as store:
        await store.registries.put_visibility(HUB, "alice/app", Visibility(True, NOW))
        await store.registries.put_visibility("ghcr.io", "any/app", Visibility(True, NOW))
        await store.links.put(HUB, "alice/app", {given: 1, only_confirmed: 1, elsewhere: 1})
        await store.links.put(HUB, "alice/app", {given: None}, given=True)
        await store.links.put("ghcr.io", "any/app", {given: 1, only_confirmed: 1, elsewhere: 1})
        await store.links.put("ghcr.io", "any/app", {elsewhere: None}, given=True)
        await store.private.add_repository(HUB, "alice/app")
        assert store.private.sources(given) == {HUB}
        assert store.private.sources(only_confirmed) == frozenset()
        assert store.private.sources(elsewhere) == {"ghcr.io"}


async def test_sources_of_private_content_accumulate_and_outlive_the_content(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, b"private")
        assert store.private.sources(digest) is None
        await store.private.add(digest)
        assert store.private.sources(digest) == frozenset()
        for host in (HUB, "ghcr.io"):
            await store.private.add(digest, host)
        await store.private.add(digest)
        await store.links.put(HUB, "alice/app", {digest: 7})
        await store.private.add_repository(HUB, "alice/app")
        await store.remove(digest)
    async with opened_store(tmp_path) as store:
        assert store.private.sources(digest) == {HUB, "ghcr.io"}


async def test_content_without_a_source_is_private_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fact_rows, "TENTATIVE_LIFETIME", 1000.0)
    now = time.time()
    tried, fetched = Digest.of(b"tried"), Digest.of(b"fetched")
    async with opened_store(tmp_path) as store:
        for digest in (tried, fetched):
            await store.private.add(digest)
        await store.private.add(fetched, HUB)
        assert store.private.has(tried)
        monkeypatch.setattr(time, "time", lambda: now + 2000.0)
        assert not store.private.has(tried)
        assert store.private.has(fetched)


async def test_negative_answer_is_cached_until_content_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, other = Digest.of(b"layer"), Digest.of(b"other")
    async with opened_store(tmp_path) as store:
        index, reads = store.index.opened(), list[str]()
        get = index.get
        monkeypatch.setattr(index, "get", lambda key: (reads.append(key), get(key))[1])
        assert [store.private.sources(digest) for _ in range(3)] == [None] * 3
        assert len(reads) == 1
        await store.private.add(digest, HUB)
        assert store.private.sources(digest) == {HUB}
        assert store.private.sources(other) is None
        await store.links.put(HUB, "alice/app", {other: 1}, given=True)
        await store.private.add_repository(HUB, "alice/app")
        assert store.private.sources(other) == {HUB}


async def test_content_counts_as_private_when_the_index_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Digest.of(b"layer")

    def fail(_: str) -> object:
        raise StorageError("the disk does not answer")

    async with opened_store(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store.index.opened(), "get", fail)
            assert store.private.sources(digest) == frozenset()
        assert store.private.sources(digest) is None
