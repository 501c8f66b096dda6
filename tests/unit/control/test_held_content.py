"""Content that the operator asked for is admitted to a full store, and stays until it is released."""

from pathlib import Path

import pytest
from hubcache.control.held_content import HeldContent
from hubcache.oci.digest import Digest
from hubcache.oci.errors import NotStored
from hubcache.store.capacity import ALLOWANCE
from hubcache.store.store import Store
from support.standin import random_bytes
from support.stores import MIB, opened_store, put_blob

CAP = ALLOWANCE + 6 * MIB


def content(name: str, size: int = 2 * MIB) -> bytes:
    return random_bytes(size, name)


async def fill(store: Store) -> list[Digest]:
    """Fill the store with content that is requested more often than anything else; the first least often."""
    digests = []
    for number, name in enumerate(("a", "b")):
        digests.append(await put_blob(store, content(name)))
        for _ in range(20 + number):
            store.popularity.count_request(digests[-1])
    return digests


async def test_held_content_displaces_what_is_requested_least(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        first, second = await fill(store)
        new = content("new")
        with pytest.raises(NotStored):
            await put_blob(store, new)
        HeldContent(store).add(Digest.of(new))
        await put_blob(store, new)
        assert [store.has(each) for each in (first, second, Digest.of(new))] == [False, True, True]


async def test_held_content_is_not_evicted_for_other_held_content(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        held = HeldContent(store)
        data = [content(name) for name in ("a", "b", "c")]
        held.add(*map(Digest.of, data))
        await put_blob(store, data[0])
        await put_blob(store, data[1])
        used = store.usage.used
        with pytest.raises(NotStored, match="pinned or in use"):
            await put_blob(store, data[2])
        assert store.usage.used == used
        held.release()
        for _ in range(5):
            store.popularity.count_request(Digest.of(data[2]))
        await put_blob(store, data[2])
        assert store.has(Digest.of(data[2]))


async def test_released_content_counts_as_requested_often_enough(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        digest = Digest.of(b"x")
        held = HeldContent(store)
        assert held.add(digest, digest) == [digest]
        assert held.add(digest) == []
        held.release()
        assert not store.usage.held
        assert store.popularity.is_admitted(digest)


async def test_content_that_two_commands_hold_stays_until_both_ended(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        digest = Digest.of(b"x")
        first, second = HeldContent(store), HeldContent(store)
        first.add(digest)
        second.keep(digest)
        first.release()
        first.release()
        assert store.usage.is_protected(digest)
        second.release([digest, Digest.of(b"y")])
        assert not store.usage.is_protected(digest)


async def test_kept_content_does_not_count_as_requested(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        HeldContent(store).keep(Digest.of(b"x"))
        assert not store.popularity.was_requested(Digest.of(b"x"))


async def test_available_bytes_are_those_that_held_content_can_use(tmp_path: Path) -> None:
    async with opened_store(tmp_path, CAP) as store:
        store.usage.held[Digest.of(content("a"))] += 1
        await fill(store)
        index = store.index.opened().bytes
        available = store.capacity.available(index)
        assert 6 * MIB - index - 2 * MIB == available
        fits, large = content("fits", available - 4096 * 4), content("large", available + 1)
        store.usage.hold(Digest.of(large))
        with pytest.raises(NotStored):
            await put_blob(store, large)
        store.usage.hold(Digest.of(fits))
        await put_blob(store, fits)
