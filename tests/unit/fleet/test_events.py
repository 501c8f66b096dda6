"""Events: every live node receives a push and a pause, and what arrives is checked."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import pytest
from hubcache.decide.records import Visibility
from hubcache.fleet import content_changes, events, keys
from hubcache.fleet.content_changes import ContentChanges
from hubcache.fleet.events import Events
from hubcache.fleet.membership import Node
from hubcache.fleet.peer_client import PeerUnavailable
from hubcache.oci.digest import Digest
from obstore.store import MemoryStore
from support.shared_upstreams import SharedSetup, shared_upstream
from support.standin import Hub
from support.users import until

HOST, REPO = "registry-1.docker.io", "library/app"
ONE, TWO, THREE = (Node(name, f"http://127.0.0.1:{port}", "1") for name, port in (("one", 1), ("two", 2), ("three", 3)))


@dataclass
class Members:
    """A fleet as node `one` sees it."""

    me: Node = ONE
    nodes: tuple[Node, ...] = (ONE, TWO, THREE)


@dataclass
class Peers:
    """Records events, and refuses those to the addresses that are down."""

    sent: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    hanging: asyncio.Event | None = None

    async def send_event(self, address: str, fields: Mapping[str, object]) -> None:
        self.sent.append((address, fields))
        if self.hanging is not None:
            await self.hanging.wait()
        if address in self.down:
            raise PeerUnavailable("cannot be reached")


@dataclass
class Received:
    """What a node's cache was asked to do."""

    changes: list[tuple[object, ...]] = field(default_factory=list)
    pauses: list[tuple[object, ...]] = field(default_factory=list)

    async def changed(self, *change: object) -> None:
        self.changes.append(change)

    def paused(self, *pause: object) -> None:
        self.pauses.append(pause)


@pytest.fixture
def received() -> Received:
    return Received()


@pytest.fixture
def peers() -> Peers:
    return Peers()


@pytest.fixture
async def sender(peers: Peers, received: Received) -> AsyncIterator[Events]:
    sender = Events(Members(), peers, received.changed, received.paused)
    yield sender
    await sender.close()


async def test_change_arrives_at_all_other_nodes(sender: Events, peers: Peers, received: Received) -> None:
    await sender.report_change(HOST, REPO, "1", False, "sha256:1")
    assert sorted(address for address, _ in peers.sent) == [TWO.address, THREE.address]
    await sender.receive(peers.sent[0][1])
    assert received.changes == [(HOST, REPO, "1", False, "sha256:1")]


async def test_pause_arrives_at_all_other_nodes(sender: Events, peers: Peers, received: Received) -> None:
    sender.report_pause(HOST, "manifest", 60.0)
    await until(lambda: len(peers.sent) == 2)
    await sender.receive(peers.sent[0][1])
    assert received.pauses == [(HOST, "manifest", 60.0)]
    assert not received.changes


async def test_join_arrives_at_all_other_nodes(sender: Events, peers: Peers) -> None:
    joined = []
    sender.on_joined = lambda: joined.append(True)
    sender.report_join()
    await until(lambda: len(peers.sent) == 2)
    await sender.receive(peers.sent[0][1])
    await sender.receive({"joined": 1})
    assert joined == [True]


async def test_event_is_sent_again_to_a_node_that_cannot_be_reached(
    sender: Events, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_RETRY_SECONDS", (0.01, 0.01, 60.0))
    peers.down.add(TWO.address)
    await sender.report_change(HOST, REPO, "1", False, None)
    await until(lambda: [address for address, _ in peers.sent].count(TWO.address) == 3)
    assert [address for address, _ in peers.sent].count(THREE.address) == 1


async def test_event_is_given_up_after_the_last_attempt_and_for_a_node_that_is_gone(
    peers: Peers, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_RETRY_SECONDS", (0.01, 0.01))
    peers.down |= {TWO.address, THREE.address}
    members = Members()
    sender = Events(members, peers, received.changed, received.paused)
    await sender.report_change(HOST, REPO, "1", False, None)
    members.nodes = (ONE, TWO)
    await until(lambda: not sender._tasks)
    assert [address for address, _ in peers.sent].count(TWO.address) == 3
    assert [address for address, _ in peers.sent].count(THREE.address) == 1


@pytest.mark.parametrize(
    "fields",
    [
        *({}, {"changed": HOST}, {"changed": 5, "repository": REPO, "reference": "1"}, {"something": "new"}),
        *({"changed": HOST, "repository": REPO, "reference": ["1"]}, {"changed": HOST, "repository": "x" * 2000}),
        *({"paused": HOST, "kind": "manifest"}, {"paused": HOST, "kind": "manifest", "seconds": "60"}),
        *({"paused": HOST, "kind": "manifest", "seconds": float("nan")}, {"paused": HOST, "kind": 1, "seconds": 1}),
        {"paused": HOST, "kind": "manifest", "seconds": -1},
    ],
    ids=str,
)
async def test_event_that_is_invalid_is_ignored(
    sender: Events, received: Received, fields: Mapping[str, object]
) -> None:
    await sender.receive(fields)
    assert received == Received()


async def test_pause_has_an_upper_bound(sender: Events, received: Received) -> None:
    await sender.receive({"paused": HOST, "kind": "manifest", "seconds": 1e9})
    assert received.pauses == [(HOST, "manifest", 3600.0)]


# -- changes -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def node(hub: Hub) -> AsyncIterator[SharedSetup]:
    async with shared_upstream(hub, MemoryStore(), "one") as opened:
        yield opened


async def test_change_is_in_the_bucket_before_other_nodes_receive_it(
    node: SharedSetup, sender: Events, peers: Peers, received: Received
) -> None:
    digest = Digest.of(b"manifest")
    changes = ContentChanges(node.sharing, received.changed, node.clock.wall)
    for reference, key in (("1", keys.tag(HOST, REPO, "1")), (str(digest), keys.manifest(HOST, REPO, digest))):
        peers.hanging = asyncio.Event()
        reporting = asyncio.create_task(changes.report(sender, HOST, REPO, reference, False, None))
        await until(lambda: peers.sent)
        assert await node.bucket.get(key) is not None
        peers.hanging.set()
        await reporting
        peers.sent.clear()
    assert not received.changes
    await changes.close()


@pytest.mark.parametrize("visibility", [None, Visibility(False, 0.0)])
async def test_push_to_a_repository_that_may_be_private_changes_only_objects_that_exist(
    node: SharedSetup, sender: Events, peers: Peers, received: Received, visibility: Visibility | None
) -> None:
    node.visibility[REPO] = visibility
    changes = ContentChanges(node.sharing, received.changed, node.clock.wall)
    key = keys.tag(HOST, REPO, "1")
    await changes.report(sender, HOST, REPO, "1", False, None)
    assert await node.bucket.get(key) is None
    await node.bucket.put(key, b"{}")
    await changes.report(sender, HOST, REPO, "1", False, None)
    found = await node.bucket.get(key)
    assert found is not None
    assert b"change" in found.value


async def test_answer_that_is_written_while_a_push_is_reported_is_dropped(
    node: SharedSetup, sender: Events, peers: Peers, received: Received
) -> None:
    node.visibility[REPO] = None
    changes = ContentChanges(node.sharing, received.changed, node.clock.wall)
    key = keys.tag(HOST, REPO, "1")
    peers.hanging = asyncio.Event()
    reporting = asyncio.create_task(changes.report(sender, HOST, REPO, "1", False, None))
    await until(lambda: peers.sent)
    await node.bucket.put(key, b'{"format": 1, "answers": {"from before": {}}}')
    peers.hanging.set()
    await reporting
    found = await node.bucket.get(key)
    assert found is not None
    assert b"from before" not in found.value


async def test_report_waits_for_other_nodes_but_not_for_long(
    node: SharedSetup, sender: Events, peers: Peers, received: Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_changes, "_PATIENCE_SECONDS", 0.05)
    peers.hanging = asyncio.Event()
    changes = ContentChanges(node.sharing, received.changed, node.clock.wall)
    await changes.report(sender, HOST, REPO, "1", False, None)
    assert sender._tasks
    await sender.close()
    await changes.close()


async def test_change_of_a_blob_and_a_malformed_reference_write_nothing(
    node: SharedSetup, sender: Events, peers: Peers, received: Received
) -> None:
    changes = ContentChanges(node.sharing, received.changed, node.clock.wall)
    await changes.report(sender, HOST, REPO, str(Digest.of(b"blob")), True, None)
    await changes.report(sender, HOST, REPO, "sha256:1", False, None)
    assert not node.seen.events
    assert len(peers.sent) == 4


async def test_received_change_is_forgotten_by_the_cache_and_ends_earlier_answers(
    node: SharedSetup, received: Received
) -> None:
    changes = ContentChanges(node.sharing, received.changed, node.clock.wall)
    before = node.clock.wall()
    await changes.receive(HOST, REPO, "1", False, None)
    assert received.changes == [(HOST, REPO, "1", False, None)]
    assert node.sharing.is_outdated(before, HOST, REPO, "1")
    assert not node.sharing.is_outdated(before, HOST, REPO, "2")


async def test_change_is_reported_while_the_bucket_is_down(
    node: SharedSetup, sender: Events, peers: Peers, received: Received
) -> None:
    node.bucket.closed_because = "down"
    changes = ContentChanges(node.sharing, received.changed, node.clock.wall)
    await changes.report(sender, HOST, REPO, "1", False, None)
    assert len(peers.sent) == 2
