"""The test of conditional writes, with buckets that keep their promise and with buckets that do not."""

import asyncio
import dataclasses
from collections import defaultdict

import pytest
from hubcache.fleet.bucket import Bucket, BucketUnavailable, StoredObject
from hubcache.fleet.probe import check_conditional_writes
from hubcache.oci.errors import ConfigError
from obstore.store import MemoryStore


class Silent:
    def bucket_answered(self, kind: str, outcome: str, *, is_of_pulls: bool) -> None:
        pass


class Honest(Bucket):
    def __init__(self, store: MemoryStore | None = None) -> None:
        super().__init__(MemoryStore() if store is None else store, Silent())


class IgnoresIfNoneMatch(Honest):
    async def create(self, key: str, value: bytes) -> str | None:
        return await self.put(key, value)


class IgnoresIfMatch(Honest):
    async def replace(self, key: str, value: bytes, e_tag: str) -> str | None:
        return await self.put(key, value)


class RacesCreations(Honest):
    """Checks the conditions of all racers before one of them writes."""

    def __init__(self) -> None:
        super().__init__()
        self.checked = defaultdict[str, asyncio.Barrier](lambda: asyncio.Barrier(4))

    async def create(self, key: str, value: bytes) -> str | None:
        if await self.get(key) is not None:
            return None
        if not is_alone(key):
            await self.checked[key].wait()
        return await self.put(key, value)


class RacesReplacements(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.checked = defaultdict[str, asyncio.Barrier](lambda: asyncio.Barrier(2))

    async def replace(self, key: str, value: bytes, e_tag: str) -> str | None:
        found = await self.get(key)
        if found is None or found.entry.e_tag != e_tag:
            return None
        if not is_alone(key):
            await self.checked[key].wait()
        return await self.put(key, value)


class AcceptsLateCreations(Honest):
    """Refuses a creation at first, and later no more."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts: dict[str, int] = {}

    async def create(self, key: str, value: bytes) -> str | None:
        self.attempts[key] = self.attempts.get(key, 0) + 1
        return await self.put(key, value) if self.attempts[key] in (1, 5) else None


class RefusesCreations(Honest):
    async def create(self, key: str, value: bytes) -> str | None:
        return None


class KnowsNoConditions(Honest):
    async def create(self, key: str, value: bytes) -> str | None:
        raise BucketUnavailable("the bucket does not answer: 501 Not Implemented")


class GivesNoEntityTags(Honest):
    async def get(self, key: str) -> StoredObject | None:
        found = await super().get(key)
        return found and dataclasses.replace(found, entry=dataclasses.replace(found.entry, e_tag=""))


class ReadsOldValues(Honest):
    async def get(self, key: str) -> StoredObject | None:
        found = await super().get(key)
        return found and dataclasses.replace(found, value=b"old")


class LosesResponses(Honest):
    """Reports a failure for some creations: instead of their effect, or after it and before the other creations."""

    def __init__(self, *, lost: range, has_effect: bool) -> None:
        super().__init__()
        self.attempts: dict[str, int] = {}
        self.lost, self.has_effect = lost, has_effect
        self.had_effect = defaultdict[str, asyncio.Event](asyncio.Event)

    async def create(self, key: str, value: bytes) -> str | None:
        number = self.attempts[key] = self.attempts.get(key, -1) + 1
        if is_alone(key):
            return await super().create(key, value)
        if number in self.lost:
            if self.has_effect:
                await super().create(key, value)
                self.had_effect[key].set()
            raise BucketUnavailable("the connection ended")
        if self.has_effect:
            await self.had_effect[key].wait()
        return await super().create(key, value)


class Down(Honest):
    async def put(self, key: str, value: bytes) -> str:
        raise BucketUnavailable("the bucket does not answer")


def is_alone(key: str) -> bool:
    """Whether this is the object that shows, before all races, that conditional writes are accepted."""
    return key.endswith("-0")


async def keys(bucket: Bucket) -> list[str]:
    return [entry.key async for entry in bucket.list("probe")]


async def test_bucket_that_keeps_its_promise_is_accepted_and_left_empty() -> None:
    bucket = Honest()
    await check_conditional_writes(bucket)
    assert await keys(bucket) == []


async def test_gateways_to_one_bucket_are_accepted() -> None:
    store = MemoryStore()
    await check_conditional_writes(*(Honest(store) for _ in range(6)))


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        (IgnoresIfNoneMatch(), r"4 of 4 racing creations of one object \(If-None-Match: \*\) succeeded; expected one"),
        (RacesCreations(), r"4 of 4 racing creations of one object \(If-None-Match: \*\) succeeded; expected one"),
        (AcceptsLateCreations(), r"one of the creations of one object \(If-None-Match: \*\) succeeded after another"),
        (RefusesCreations(), r"none of 4 racing creations of one object \(If-None-Match: \*\) succeeded; expected one"),
        (IgnoresIfMatch(), r"2 of 2 racing replacements of one version \(If-Match\) succeeded; expected one"),
        (RacesReplacements(), r"2 of 2 racing replacements of one version \(If-Match\) succeeded; expected one"),
        (KnowsNoConditions(), r"it accepts plain writes and no conditional ones: .* 501 Not Implemented"),
        (GivesNoEntityTags(), "it gives no entity tags"),
        (ReadsOldValues(), "a gateway does not return what was written"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Bucket) else "",
)
async def test_bucket_that_breaks_its_promise_is_refused(bucket: Bucket, message: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^hubcache_bucket: the bucket cannot be shared by a fleet: {message}"
    ) as caught:
        await check_conditional_writes(bucket)
    assert "\n" not in str(caught.value)
    assert await keys(bucket) == []


async def test_gateways_to_different_buckets_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 of 4 racing creations"):
        await check_conditional_writes(Honest(), Honest())


async def test_gateway_behind_others_in_a_list_is_tested() -> None:
    store = MemoryStore()
    with pytest.raises(ConfigError, match="creations of one object"):
        await check_conditional_writes(Honest(store), Honest(store), IgnoresIfNoneMatch(store))


async def test_bucket_that_is_down_is_not_judged() -> None:
    with pytest.raises(BucketUnavailable, match="does not answer"):
        await check_conditional_writes(Down())


async def test_failed_losers_do_not_matter() -> None:
    await check_conditional_writes(LosesResponses(lost=range(1, 3), has_effect=False))


@pytest.mark.parametrize("has_effect", [True, False])
async def test_race_without_a_known_winner_is_not_judged(has_effect: bool) -> None:
    bucket = LosesResponses(lost=range(1 if has_effect else 4), has_effect=has_effect)
    with pytest.raises(BucketUnavailable, match="failed while they were tested"):
        await check_conditional_writes(bucket)
    assert await keys(bucket) == []
