"""The nodes of a fleet, as each sees them in the bucket."""

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator

import pytest
from hubcache.fleet import membership
from hubcache.fleet.bucket import Bucket, BucketUnavailable, Entry, StoredObject
from hubcache.fleet.clock import BucketClock
from hubcache.fleet.membership import HEARTBEAT_SECONDS, LIVE_SECONDS, Membership, Node
from obstore.store import MemoryStore
from support.users import until

A = Node("a", "http://127.0.0.1:5002", "1.0.0")
B = Node("b", "http://[2001:db8::2]:5002", "1.1.0")


class Counted:
    """The requests that were answered."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def bucket_answered(self, kind: str, outcome: str, *, is_of_pulls: bool) -> None:
        self.kinds.append(kind)


class TimedBucket(Bucket):
    """A bucket whose clock and availability the fleet of a test sets."""

    def __init__(self, fleet: "Fleet") -> None:
        super().__init__(fleet.store, fleet.counted)
        self._fleet = fleet

    async def put(self, key: str, value: bytes) -> str:
        self._fleet.fail_when_down()
        self._fleet.modified[key] = float(math.floor(self._fleet.now))
        return await super().put(key, value)

    async def head(self, key: str) -> Entry | None:
        self._fleet.fail_when_down()
        entry = await super().head(key)
        return None if entry is None else dataclasses.replace(entry, modified=self._fleet.modified[key])

    async def list(self, prefix: str) -> AsyncIterator[Entry]:
        self._fleet.fail_when_down()
        async for entry in super().list(prefix):
            yield dataclasses.replace(entry, modified=self._fleet.modified[entry.key])


class Fleet:
    """Nodes that share a bucket; `now` is its time."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.counted = Counted()
        self.now = 1_000_000.0
        self.is_down = False
        self.modified: dict[str, float] = {}

    def fail_when_down(self) -> None:
        if self.is_down:
            raise BucketUnavailable("the bucket does not answer")

    def node(self, me: Node, *, clock_ahead: float = 0.0) -> Membership:
        return Membership(
            TimedBucket(self), BucketClock(lambda: self.now + clock_ahead, lambda: self.now - 900_000), me
        )


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


async def test_nodes_find_each_other(fleet: Fleet) -> None:
    a, b = fleet.node(A), fleet.node(B)
    await a.beat()
    assert not a.is_live("b")
    await b.beat()
    await a.beat()
    assert a.nodes == (A, B)
    assert b.nodes == (B, A)
    assert a.is_live("b")
    assert a.is_live("a")
    assert not a.is_live("c")


async def test_node_that_ends_is_gone_at_the_next_heartbeat(fleet: Fleet) -> None:
    a, b = fleet.node(A), fleet.node(B)
    await b.start()
    await a.beat()
    assert a.is_live("b")
    await b.close()
    await a.beat()
    assert a.nodes == (A,)


async def test_node_whose_heartbeats_stop_is_live_for_three_of_them(fleet: Fleet) -> None:
    a, b = fleet.node(A), fleet.node(B)
    await b.beat()
    await a.beat()
    lives = []
    for _ in range(5):
        fleet.now += HEARTBEAT_SECONDS
        await a.beat()
        lives.append(a.is_live("b"))
    assert lives == [True, True, True, False, False]
    await b.beat()
    await a.beat()
    assert a.is_live("b")


@pytest.mark.parametrize("ahead", [-600.0, 600.0])
async def test_nodes_with_wrong_clocks_see_who_is_live(fleet: Fleet, ahead: float) -> None:
    a, b = fleet.node(A, clock_ahead=ahead), fleet.node(B)
    await b.beat()
    await a.beat()
    await b.beat()
    assert a.is_live("b")
    assert b.is_live("a")
    for _ in range(math.ceil(LIVE_SECONDS / HEARTBEAT_SECONDS)):
        fleet.now += HEARTBEAT_SECONDS
        await a.beat()
    assert not a.is_live("b")


async def test_nodes_stay_while_the_bucket_is_down_and_when_it_is_back(fleet: Fleet) -> None:
    a, b = fleet.node(A), fleet.node(B)
    await a.beat()
    await b.beat()
    await a.beat()
    fleet.is_down = True
    for _ in range(30):
        fleet.now += HEARTBEAT_SECONDS
        with pytest.raises(BucketUnavailable):
            await a.beat()
    assert a.is_live("b")
    fleet.is_down = False
    await a.beat()
    assert a.is_live("b"), "it could not send a heartbeat either"
    fleet.now += HEARTBEAT_SECONDS
    await a.beat()
    assert not a.is_live("b"), "it could have by now"


async def test_address_of_another_node_is_read_once(fleet: Fleet) -> None:
    a, b = fleet.node(A), fleet.node(B)
    await b.beat()
    await a.beat()
    for _ in range(3):
        fleet.now += HEARTBEAT_SECONDS
        await b.beat()  # the store's entity tags change at each write
        await a.beat()
    assert fleet.counted.kinds.count("get") == 2, "each of the two read the other's"


async def test_address_that_changes_is_read_again(fleet: Fleet) -> None:
    a, b = fleet.node(A), fleet.node(B)
    await b.beat()
    await a.beat()
    moved = dataclasses.replace(B, address="http://10.0.0.3:5002")
    fleet.now += 61
    await fleet.node(moved).beat()
    await a.beat()
    assert a.nodes == (A, moved)


class SlowBucket(TimedBucket):
    """A bucket whose reads overlap; `most` is the number of those that were under way at the same time."""

    def __init__(self, fleet: "Fleet") -> None:
        super().__init__(fleet)
        self.reading = 0
        self.most = 0

    async def get(self, key: str) -> StoredObject | None:
        self.reading += 1
        self.most = max(self.most, self.reading)
        for _ in range(5):
            await asyncio.sleep(0)
        self.reading -= 1
        return await super().get(key)


async def test_addresses_of_many_nodes_are_read_together_but_not_all_at_once(fleet: Fleet) -> None:
    for number in range(40):
        await fleet.node(Node(f"n{number}", f"http://10.0.0.{number}:5002", "1")).beat()
    bucket = SlowBucket(fleet)
    a = Membership(bucket, BucketClock(lambda: fleet.now, lambda: fleet.now), A)
    await a.beat()
    assert len(a.nodes) == 41
    assert bucket.most == 16


async def test_known_nodes_stay_when_there_are_too_many(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_NODES", 5)
    a, z = fleet.node(A), Node("z", "http://10.0.1.1:5002", "1")
    for each in (z, Node("z-unreadable", "http://10.0.1.2:5002", "1")):
        await fleet.node(each).beat()
    await TimedBucket(fleet).put("node/z-unreadable", b"{}")
    await a.beat()
    for number in range(9):
        await fleet.node(Node(f"n{number}", f"http://10.0.0.{number}:5002", "1")).beat()
    fleet.now += HEARTBEAT_SECONDS
    await a.beat()
    assert [node.id for node in a.nodes] == ["a", "n0", "n1", "n2", "z"]


async def test_own_clock_is_observed_when_others_write_too_many_objects(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "_MAX_LISTED", 3)
    for number in range(5):
        await fleet.node(Node(f"n{number}", f"http://10.0.0.{number}:5002", "1")).beat()
    z = fleet.node(Node("z", "http://10.0.1.1:5002", "1"), clock_ahead=600.0)
    await z.beat()
    assert [node.id for node in z.nodes] == ["z", "n0", "n1", "n2"]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"format": 2, "address": "http://10.0.0.2:5002", "version": "9"}',
        b'{"format": 1, "address": "http://10.0.0.2:5002"}',
        b'{"format": 1, "address": "http://user@10.0.0.2:5002", "version": "9"}',
        b'{"format": 1, "address": "http://10.0.0.2:5002/path", "version": "9"}',
        b'{"format": 1, "address": "file:///etc/passwd", "version": "9"}',
        b"{" + b" " * 5000 + b"}",
    ],
)
async def test_object_that_is_not_understood_is_no_node(fleet: Fleet, value: bytes) -> None:
    a = fleet.node(A)
    await TimedBucket(fleet).put("node/b", value)
    await a.beat()
    assert a.nodes == (A,)


async def test_unknown_fields_of_a_newer_version_are_ignored(fleet: Fleet) -> None:
    a = fleet.node(A)
    value = b'{"format": 1, "address": "http://10.0.0.2:5002", "version": "9", "new": [1]}'
    await TimedBucket(fleet).put("node/b", value)
    await a.beat()
    assert a.nodes == (A, Node("b", "http://10.0.0.2:5002", "9"))


async def test_heartbeats_are_repeated_and_survive_an_outage(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "HEARTBEAT_SECONDS", 0.01)
    fleet.is_down = True
    a, b = fleet.node(A), fleet.node(B)
    await a.start()
    await asyncio.sleep(0)
    assert a.nodes == (A,)
    fleet.is_down = False
    await b.beat()
    await until(lambda: a.is_live("b"))
    await a.close()
    await b.beat()
    assert b.nodes == (B,)


@pytest.mark.parametrize(
    ("id", "address"),
    [
        ("", "http://a:1"),
        ("a/b", "http://a:1"),
        ("a", "https://a:1"),
        ("a", "http://a"),
        ("a", "http://a:99999"),
        ("a", "http://a:0"),
        ("a", "http://a:1/"),
        ("a", "http://a:1\n"),
        ("a", "http://user@a:1"),
        ("a", "http://a b:1"),
        ("a", "http://a\\b:1"),
        ("a", "http://a..b:1"),
        ("a", "http://a%zz:1"),
        ("a", f"http://{'a' * 64}.x:1"),
        ("a", f"http://{'a.' * 126}aa:1"),
        ("a", "http://\u2025:1"),
        ("a", "http://\ud800:1"),
        ("a", "http://[::1]a:1"),
        ("a", "http://[::1:1"),
        ("a", "http://[1:2:3]:1"),
        ("a", "http://[v1.a]:1"),
    ],
)
def test_node_with_an_unusable_id_or_address_is_refused(id: str, address: str) -> None:
    with pytest.raises(ValueError, match=r"not an|Exactly 8 parts"):
        Node(id, address, "1")


@pytest.mark.parametrize(
    "host",
    ["cache-1", "cache_1.example.com.", "A" * 63, f"{'a.' * 126}a", "10.0.0.2", "[2001:db8::2]", "[fe80::1%eth0]"],
)
def test_node_is_a_name_or_an_ip_address_with_a_port(host: str) -> None:
    assert Node("a", f"http://{host}:65535", "1").address == f"http://{host}:65535"


@pytest.mark.parametrize("version", ["1\n2", "\ud800", "1" * 101])
def test_node_with_an_unusable_version_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match="not a version"):
        Node("a", "http://a:1", version)
