"""Request counts of the fleet: written by each node, added by a sweep, merged when a node has disappeared."""

import asyncio

import pytest
from hubcache.decide.bucket_plan import short_digest
from hubcache.fleet import popularity
from hubcache.fleet.bucket import BucketUnavailable
from hubcache.fleet.popularity import NodePopularity, merge_earlier, read_popularity
from support.sweeps import DAY, digest
from support.virtual_bucket import Objects, VirtualBucket
from support.virtual_time import VirtualClock, in_virtual_time, virtual_now

HALF_LIFE = 7 * DAY


def node(bucket: VirtualBucket, name: str, private: str = "") -> NodePopularity:
    return NodePopularity(bucket, VirtualClock(), name, HALF_LIFE, lambda one: one != digest(private))


async def counts(bucket: VirtualBucket, *names: str, live: bool = True) -> list[float]:
    """Return the fleet's counts of content."""
    sums = (await read_popularity(bucket, HALF_LIFE, virtual_now(), lambda _: live)).sums
    found = [sums.get(short_digest(digest(name).hex)) for name in names]
    return [0.0 if each is None else round(each.at(virtual_now(), HALF_LIFE), 3) for each in found]


@in_virtual_time
async def test_counts_of_all_nodes_are_added() -> None:
    bucket = VirtualBucket(Objects())
    for name, requests in (("one", "aab"), ("two", "ac")):
        counting = node(bucket, name)
        for each in requests:
            counting.count_request(digest(each))
        await counting.write()
    assert await counts(bucket, "a", "b", "c", "d") == [3.0, 1.0, 1.0, 0.0]


@in_virtual_time
async def test_counts_decay() -> None:
    bucket = VirtualBucket(Objects())
    counting = node(bucket, "one")
    counting.count_request(digest("a"))
    await asyncio.sleep(HALF_LIFE)
    counting.count_request(digest("a"))
    await counting.write()
    await asyncio.sleep(HALF_LIFE)
    assert await counts(bucket, "a") == [0.75]


@in_virtual_time
async def test_counts_are_written_once_a_minute_if_they_have_changed() -> None:
    objects = Objects()
    counting = node(VirtualBucket(objects), "one")
    await counting.start()
    await asyncio.sleep(130)
    assert objects.by_key == {}
    counting.count_request(digest("a"))
    await asyncio.sleep(60)
    first = objects.by_key["popularity/one"]
    await asyncio.sleep(180)
    assert objects.by_key["popularity/one"] == first
    counting.count_request(digest("b"))
    await counting.close()
    assert await counts(VirtualBucket(objects), "a", "b") == [1.0, 1.0]
    await counting.close()


@in_virtual_time
async def test_counts_are_written_later_when_the_bucket_was_down() -> None:
    bucket = VirtualBucket(Objects())
    counting = node(bucket, "one")
    counting.count_request(digest("a"))
    bucket.is_cut_off = True
    with pytest.raises(BucketUnavailable):
        await counting.write()
    bucket.is_cut_off = False
    await counting.write()
    assert await counts(bucket, "a") == [1.0]


@in_virtual_time
async def test_counts_of_private_content_are_not_written() -> None:
    bucket = VirtualBucket(Objects())
    counting = node(bucket, "one", private="secret")
    counting.count_request(digest("secret"))
    await counting.write()
    assert bucket.objects.by_key == {}


def test_only_the_busiest_content_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(popularity, "BUSIEST", 3)

    @in_virtual_time
    async def count() -> None:
        bucket = VirtualBucket(Objects())
        counting = node(bucket, "one")
        for each in "aaabbbcccdefgaaa":
            counting.count_request(digest(each))
        await counting.write()
        assert len((await read_popularity(bucket, HALF_LIFE, virtual_now(), lambda _: True)).sums) == 3
        assert await counts(bucket, "a", "b", "c") == [6.0, 3.0, 3.0]

    count()


@in_virtual_time
async def test_counts_of_nodes_that_disappeared_are_merged_into_one_object() -> None:
    objects = Objects()
    bucket = VirtualBucket(objects)
    for name in ("one", "two"):
        counting = node(bucket, name)
        counting.count_request(digest("a"))
        await counting.write()
    await asyncio.sleep(2 * 3600)
    live = node(bucket, "live")
    live.count_request(digest("a"))
    await live.write()
    for _ in range(2):
        found = await read_popularity(bucket, HALF_LIFE, virtual_now(), lambda name: name == "live")
        await merge_earlier(bucket, found, virtual_now())
        assert sorted(objects.by_key) == ["popularity/_earlier", "popularity/live"]
    (total,) = await counts(bucket, "a")
    assert total == pytest.approx(3.0, abs=0.05)


@in_virtual_time
async def test_counts_of_a_node_that_is_live_or_wrote_lately_are_not_merged() -> None:
    bucket = VirtualBucket(Objects())
    counting = node(bucket, "one")
    counting.count_request(digest("a"))
    await counting.write()
    for seconds, is_live in ((60.0, False), (7200.0, True)):
        await asyncio.sleep(seconds)
        found = await read_popularity(bucket, HALF_LIFE, virtual_now(), lambda _, live=is_live: live)  # type: ignore[misc]
        assert found.silent == ()


@in_virtual_time
async def test_objects_that_are_not_counts_do_not_hide_those_of_others() -> None:
    objects = Objects()
    objects.write("popularity/broken", '{"format":1,"rows":"é"}'.encode())
    counting = node(VirtualBucket(objects), "one")
    counting.count_request(digest("a"))
    await counting.write()
    assert await counts(VirtualBucket(objects), "a") == [1.0]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[]",
        b'{"format":2,"rows":""}',
        b'{"format":1,"rows":"?"}',
        b'{"format":1}',
        b'{"format":1,"rows":"AAAA"}',
        '{"format":1,"rows":"é"}'.encode(),
    ],
)
def test_object_that_this_version_cannot_read_has_no_counts(value: bytes) -> None:
    assert list(popularity._decode(value)) == []
