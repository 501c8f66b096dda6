"""Answers of a registry that another node is about to write: how they are waited for."""

import asyncio
import time

import pytest
from hubcache.fleet import keys, shared_answers
from hubcache.fleet.leases import Lease
from hubcache.oci.digest import Digest
from hubcache.oci.errors import ManifestUnknown
from obstore.store import MemoryStore
from support.fleet import CountedRequests
from support.shared_upstreams import (
    ACCEPT,
    HOST,
    REPO,
    TAG,
    ReachableNodes,
    SharedSetup,
    get,
    head,
    manifest_requests,
    shared_upstream,
    shared_upstreams,
)
from support.standin import Fault, Hub, Image
from support.users import until

LEASE = f"tag/{keys.hashed(HOST, REPO, '1', ACCEPT)}"


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image(REPO, "1", [b"layer"])


async def acquired(node: SharedSetup, tag: str = "1") -> Lease:
    lease = await node.leases.acquire(f"tag/{keys.hashed(HOST, REPO, tag, ACCEPT)}")
    assert isinstance(lease, Lease)
    return lease


async def test_answer_is_read_once_after_the_holder_of_the_lease_has_reported_its_release(
    hub: Hub, image: Image
) -> None:
    fault = hub.faults.add(Fault(kind="manifest", method="GET", pause_after=1))
    async with shared_upstreams(hub, 4, peers=ReachableNodes()) as nodes:
        asking = [asyncio.create_task(get(node)) for node in nodes]
        await until(lambda: nodes[0].peers.waits == [LEASE] * 3)
        before = [requests(node.seen) for node in nodes]
        assert before.count({"get": 2, "put": 1}) >= 3, "the answer, the lease, and whose lease it is"
        hub.faults.remove(fault)
        assert await asyncio.gather(*asking) == [image.manifest] * 4
        waited = [node for node in nodes if ("put", "conflict") in node.seen.events]
        assert [requests(node.seen) for node in waited] == [{"get": 4, "put": 1}] * 3
    assert manifest_requests(hub) == {"HEAD": 0, "GET": 1}


def requests(seen: CountedRequests) -> dict[str, int]:
    kinds = [kind for kind, _ in seen.events]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


async def test_new_tag_costs_six_requests(hub: Hub, image: Image) -> None:
    async with shared_upstreams(hub, 1) as (node,):
        assert await get(node) == image.manifest
        await node.sharing.answers.close()
        assert requests(node.seen) == {"delete": 1, "get": 2, "put": 3}, "the lease, the manifest, and the tag"


async def test_new_manifest_costs_four_requests(hub: Hub, image: Image) -> None:
    async with shared_upstreams(hub, 1) as (node,):
        assert await get(node, Digest.parse(image.digest)) == image.manifest
        await node.sharing.answers.close()
        assert requests(node.seen) == {"get": 1, "put": 2}, "the lease and the manifest"
        await node.settle()
        assert node.seen.count("delete") == 1


async def test_tag_that_is_pushed_just_after_an_answer_is_asked_for_by_one_node(hub: Hub, image: Image) -> None:
    async with shared_upstreams(hub, 4, peers=ReachableNodes()) as nodes:
        assert await get(nodes[0]) == image.manifest
        await nodes[0].sharing.answers.close()
        await nodes[0].sharing.answers.mark_changed(TAG)
        pushed = hub.image(REPO, "1", [b"another layer"])
        before = sum(manifest_requests(hub).values())
        hub.faults.add(Fault(kind="manifest", delay=0.2))
        assert await asyncio.gather(*(get(node) for node in nodes[1:])) == [pushed.manifest] * 3
    assert sum(manifest_requests(hub).values()) - before == 1


async def test_holder_that_cannot_be_reached_is_asked_once_and_the_bucket_is_read(hub: Hub, image: Image) -> None:
    hub.image(REPO, "2", [b"another layer"])
    async with shared_upstreams(hub, 2) as (first, second):
        for tag in ("1", "2"):
            lease = await acquired(first, tag)
            before = second.seen.count("get")
            asking = asyncio.create_task(get(second, tag))
            await until(lambda before=before: second.seen.count("get") >= before + 4)
            await lease.release()
            await asking
        assert second.peers.waits == [LEASE]


async def test_node_asks_itself_when_the_holder_of_the_lease_has_no_answer_in_time(
    hub: Hub, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_answers, "WAIT_SECONDS", 0.1)
    async with shared_upstreams(hub, 2, peers=ReachableNodes()) as (first, second):
        lease = await acquired(first)
        begun = time.monotonic()
        assert await head(second) == image.digest
        assert time.monotonic() - begun >= 0.1
        assert second.peers.waits == [LEASE]
        await lease.release()
    assert sum(manifest_requests(hub).values()) == 1


class SilentNodes(ReachableNodes):
    """Nodes that store `answer` and never report that they have released a lease."""

    def __init__(self, store: MemoryStore, answer: bytes) -> None:
        super().__init__()
        self._store, self._answer = store, answer

    async def wait_released(self, address: str, name: str) -> bool:
        self._store.put(TAG, self._answer)
        await asyncio.Event().wait()
        return False


async def test_answer_is_read_once_more_after_the_holder_of_the_lease_did_not_report_in_time(
    hub: Hub, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_answers, "WAIT_SECONDS", 0.1)
    store = MemoryStore()
    async with shared_upstream(hub, store, "first") as first:
        assert await get(first) == image.manifest
        await first.settle()
        answer = bytes(store.get(TAG).bytes())
        store.delete(TAG)
        lease = await acquired(first)
        async with shared_upstream(hub, store, "second", peers=SilentNodes(store, answer)) as second:
            assert await get(second) == image.manifest
        await lease.release()
    assert manifest_requests(hub) == {"HEAD": 0, "GET": 1}


async def test_node_asks_itself_when_the_lease_was_released_without_an_answer(
    hub: Hub, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_answers, "WAIT_SECONDS", 60.0)
    async with shared_upstreams(hub, 2, peers=ReachableNodes()) as (first, second):
        lease = await acquired(first)
        asking = asyncio.create_task(head(second))
        await until(lambda: second.peers.waits == [LEASE])
        await lease.release()
        assert await asking == image.digest
        await second.settle()
        assert second.seen.count("put") == 2  # the lease that it did not get, and the answer


async def test_lease_that_its_holder_does_not_know_is_polled(
    hub: Hub, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the restart of a node, and with a node of a version that cannot be asked."""
    monkeypatch.setattr(shared_answers, "WAIT_SECONDS", 60.0)
    async with shared_upstreams(hub, 2, peers=ReachableNodes()) as (first, second):
        lease = await acquired(first)
        first.leases._own.clear()
        asking = asyncio.create_task(head(second))
        await until(lambda: second.seen.count("get") > 4)
        await lease.release()
        assert await asking == image.digest


async def test_task_of_the_node_that_holds_the_lease_asks_no_other_node(hub: Hub, image: Image) -> None:
    hub.faults.add(Fault(kind="manifest", method="HEAD", delay=0.2))
    async with shared_upstream(hub, MemoryStore(), "node", peers=ReachableNodes()) as node:
        assert await asyncio.gather(head(node), head(node)) == [image.digest] * 2
        assert node.peers.waits == []
        await node.settle()
        assert requests(node.seen)["put"] == 2
    assert manifest_requests(hub) == {"HEAD": 1, "GET": 0}


async def test_missing_tag_is_shared_by_nodes_that_wait(hub: Hub, image: Image) -> None:
    hub.faults.add(Fault(kind="manifest", delay=0.2))
    async with shared_upstreams(hub, 3, peers=ReachableNodes()) as nodes:
        found = await asyncio.gather(*(get(node, "none") for node in nodes), return_exceptions=True)
        assert [type(each) for each in found] == [ManifestUnknown] * 3
    assert sum(manifest_requests(hub).values()) == 1
