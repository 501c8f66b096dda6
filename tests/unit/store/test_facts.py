"""What the store remembers of repositories and tags, and for how long."""

import asyncio
import time
from pathlib import Path

import pytest
from hubcache.decide.records import Link, TagRecord, Visibility
from hubcache.decide.tag_changes import TagChanges
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.oci.image_name import ImageName
from hubcache.store import fact_rows
from support.stores import opened_store, put_blob

NOW = time.time()
HUB = "registry-1.docker.io"


async def test_tags_are_remembered_by_negotiation_until_dropped(tmp_path: Path) -> None:
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


async def test_two_negotiations_of_one_tag_that_arrive_together_are_both_remembered(tmp_path: Path) -> None:
    record = TagRecord(Digest.of(b"m"), "a/b", 1, NOW)
    async with opened_store(tmp_path) as store:
        await asyncio.gather(*(store.tags.put(HUB, "a", "latest", accept, record) for accept in ("one", "two")))
        assert set(store.tags.get(HUB, "a", "latest")) == {"one", "two"}


async def test_a_link_is_known_for_its_repository_only(tmp_path: Path) -> None:
    digest, other = Digest.of(b"layer"), Digest.of(b"other")
    async with opened_store(tmp_path) as store:
        await store.links.put(HUB, "library/debian", {digest: 5, other: None})
        assert store.links.get(HUB, "library/debian", digest) == Link(5)
        assert store.links.get(HUB, "library/debian", other) == Link(None)
        assert store.links.get(HUB, "library/debia", digest) is None
        assert store.links.get("ghcr.io", "library/debian", digest) is None


async def test_popularity_survives_a_restart_once_flushed(tmp_path: Path) -> None:
    digest = Digest.of(b"image")
    async with opened_store(tmp_path) as store:
        store.popularity.count_request(digest)
        store.popularity.count_request(digest)
    async with opened_store(tmp_path) as store:
        assert store.capacity.retention.requests(digest, time.time()) == pytest.approx(2.0, abs=0.01)


async def test_a_challenge_is_remembered_and_replaced(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        assert store.registries.challenge(HUB) is None
        await store.registries.put_challenge(HUB, "Bearer realm=a")
        await store.registries.put_challenge(HUB, "Bearer realm=b")
        assert store.registries.challenge(HUB) == "Bearer realm=b"


async def test_facts_about_what_is_stored_outlive_their_lifetime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a long outage, or offline, nothing writes them again; and links are written once."""
    monkeypatch.setattr(fact_rows, "FACT_LIFETIME", 2.0)
    async with opened_store(tmp_path) as store:
        here, gone = await put_blob(store, b"here"), Digest.of(b"gone")
        for name, digest in (("held", here), ("over", gone)):
            await store.links.put(HUB, name, {digest: 4})
            await store.tags.put(HUB, name, "1", "any", TagRecord(digest, "a/b", 4, NOW))
            await store.registries.put_visibility(HUB, name, Visibility(True, NOW))
            await store.tags.put_changes({(HUB, name, "1"): TagChanges(NOW), (HUB, name, "elsewhere"): TagChanges(NOW)})
        monkeypatch.setattr(fact_rows, "FACT_LIFETIME", 100.0)
        await store.expire()
        await asyncio.sleep(2.1)
        await store.expire()
        assert store.links.get(HUB, "held", here) == Link(4)
        assert store.tags.get(HUB, "held", "1")
        assert store.registries.visibility(HUB, "held") == Visibility(True, NOW)
        assert store.tags.changes(HUB, "held", "1") == TagChanges(NOW)
        assert store.tags.changes(HUB, "held", "elsewhere") is None
        assert store.tags.changes(HUB, "over", "1") is None
        assert store.links.get(HUB, "over", gone) is None
        assert not store.tags.get(HUB, "over", "1")
        assert store.registries.visibility(HUB, "over") is None


async def test_what_turned_private_is_hidden_but_not_what_a_public_repository_has_too(tmp_path: Path) -> None:
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


async def test_when_tags_moved_is_remembered(tmp_path: Path) -> None:
    moves = TagChanges(NOW - 100.0, (NOW - 50.0, NOW))
    async with opened_store(tmp_path) as store:
        await store.tags.put_changes(
            {(HUB, "library/debian", "stable"): moves, (HUB, "library/debian", "12"): TagChanges(NOW)}
        )
    async with opened_store(tmp_path) as store:
        assert store.tags.changes(HUB, "library/debian", "stable") == moves
        assert store.tags.changes(HUB, "library/debian", "12") == TagChanges(NOW)
        assert store.tags.changes("ghcr.io", "library/debian", "stable") is None


async def test_senseless_row_about_moves_is_no_knowledge(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        store.index.opened().set(f"moves/{HUB}/library/debian:stable", "{}")
        assert store.tags.changes(HUB, "library/debian", "stable") is None


async def test_what_turned_private_belongs_to_the_registries_that_gave_it(tmp_path: Path) -> None:
    """One that only says that it has it gave nothing; where nobody is known, none has it."""
    given, said, elsewhere = (Digest.of(text) for text in (b"given", b"said", b"elsewhere"))
    async with opened_store(tmp_path) as store:
        await store.registries.put_visibility(HUB, "alice/app", Visibility(True, NOW))
        await store.registries.put_visibility("ghcr.io", "any/app", Visibility(True, NOW))
        await store.links.put(HUB, "alice/app", {given: 1, said: 1, elsewhere: 1})
        await store.links.put(HUB, "alice/app", {given: None}, given=True)
        await store.links.put("ghcr.io", "any/app", {given: 1, said: 1, elsewhere: 1})
        await store.links.put("ghcr.io", "any/app", {elsewhere: None}, given=True)
        await store.private.add_repository(HUB, "alice/app")
        assert store.private.sources(given) == {HUB}
        assert store.private.sources(said) == frozenset()
        assert store.private.sources(elsewhere) == {"ghcr.io"}


async def test_sources_of_private_content_add_up_and_outlive_the_content(tmp_path: Path) -> None:
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


async def test_digests_that_somebody_thinks_up_are_private_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fact_rows, "TENTATIVE_LIFETIME", 0.2)
    tried, fetched = Digest.of(b"tried"), Digest.of(b"fetched")
    async with opened_store(tmp_path) as store:
        for digest in (tried, fetched):
            await store.private.add(digest)
        await store.private.add(fetched, HUB)
        await asyncio.sleep(0.3)
        assert not store.private.has(tried)
        assert store.private.has(fetched)


async def test_what_is_known_of_a_link_is_not_lost_by_what_is_learned(tmp_path: Path) -> None:
    digest = Digest.of(b"layer")
    async with opened_store(tmp_path) as store:
        await store.links.put(HUB, "a", {digest: 5}, confirmed=False)
        assert store.links.get(HUB, "a", digest) == Link(5, confirmed=False)
        await store.links.put(HUB, "a", {digest: None}, given=True)
        await store.links.put(HUB, "a", {digest: None})
        await store.links.put(HUB, "a", {digest: None}, confirmed=False)
        assert store.links.get(HUB, "a", digest) == Link(5, confirmed=True, given=True)


async def test_media_type_is_a_registrys_own(tmp_path: Path) -> None:
    digest = Digest.of(b"schema 1")
    async with opened_store(tmp_path) as store:
        await store.registries.put_media_type(HUB, digest, "a/b")
        assert store.registries.media_type(HUB, digest) == "a/b"
        assert store.registries.media_type("ghcr.io", digest) is None


async def test_what_is_not_private_is_looked_up_once_until_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, other = Digest.of(b"layer"), Digest.of(b"other")
    async with opened_store(tmp_path) as store:
        index, asked = store.index.opened(), list[str]()
        get = index.get
        monkeypatch.setattr(index, "get", lambda key: (asked.append(key), get(key))[1])
        assert [store.private.sources(digest) for _ in range(3)] == [None] * 3
        assert len(asked) == 1
        await store.private.add(digest, HUB)
        assert store.private.sources(digest) == {HUB}
        assert store.private.sources(other) is None
        await store.links.put(HUB, "alice/app", {other: 1}, given=True)
        await store.private.add_repository(HUB, "alice/app")
        assert store.private.sources(other) == {HUB}


async def test_index_that_cannot_tell_makes_nothing_public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = Digest.of(b"layer")

    def fail(_: str) -> object:
        raise StorageError("the disk does not answer")

    async with opened_store(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store.index.opened(), "get", fail)
            assert store.private.sources(digest) == frozenset()
        assert store.private.sources(digest) is None


@pytest.mark.parametrize("row", ["", "{", "[]", "{}", "7", '{"a": [1]}', '[["x"]]', "null"])
async def test_damaged_row_tells_nothing_and_stops_nothing(tmp_path: Path, row: str) -> None:
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
        store.pins = (ImageName(HUB, app, "1"),)
        await store.maintain()
        assert store.has(stored)
