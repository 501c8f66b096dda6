"""Answers of a registry, shared by nodes: one request for the fleet, and no answer that lives longer than alone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hubcache.fleet import keys, leases, shared_answers
from hubcache.fleet.leases import Lease
from hubcache.oci.digest import Digest
from support.shared_upstreams import (
    ACCEPT,
    HOST,
    REPO,
    TAG,
    SharedSetup,
    advance,
    get,
    head,
    manifest_requests,
    shared_upstream,
    shared_upstream_fixtures,
    shared_upstreams,
)
from support.standin import Fault, Hub, Image
from support.users import until

short_waits, nodes, image = shared_upstream_fixtures()


async def test_registry_is_asked_once_for_a_tag(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    assert await get(first) == image.manifest
    await first.settle()
    assert await get(second) == await get(second, Digest.parse(image.digest)) == image.manifest
    assert await head(second) == image.digest
    assert await head(first, Digest.parse(image.digest)) == image.digest
    assert manifest_requests(hub) == {"HEAD": 0, "GET": 1}


@pytest.mark.parametrize("request_it", [get, head])
async def test_registry_is_asked_once_by_nodes_that_ask_at_the_same_moment(
    hub: Hub, image: Image, request_it: Callable[[SharedSetup], Awaitable[object]]
) -> None:
    hub.faults.add(Fault(kind="manifest", delay=0.3))
    async with shared_upstreams(hub, 5) as many:
        found = await asyncio.gather(*(request_it(node) for node in many))
        assert found == [image.manifest if request_it is get else image.digest] * 5
        assert sum(manifest_requests(hub).values()) == 1
        advance(many, 601)
        found = await asyncio.gather(*(request_it(node) for node in many))
        assert found == [image.manifest if request_it is get else image.digest] * 5
    assert manifest_requests(hub) == ({"HEAD": 1, "GET": 1} if request_it is get else {"HEAD": 2, "GET": 0})


async def test_manifest_is_fetched_once_after_a_head(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    hub.faults.add(Fault(kind="manifest", method="GET", delay=0.2))
    await head(nodes[0])
    await nodes[0].settle()
    assert await asyncio.gather(*(get(node) for node in nodes)) == [image.manifest] * 2
    assert manifest_requests(hub) == {"HEAD": 1, "GET": 1}


async def test_moved_tag_costs_one_head_and_one_get(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    await get(nodes[0])
    await nodes[0].settle()
    moved = hub.image(REPO, "1", [b"moved"])
    hub.reset_log()
    advance(nodes, 601)
    assert await asyncio.gather(*(get(node) for node in nodes)) == [moved.manifest] * 2
    assert manifest_requests(hub) == {"HEAD": 1, "GET": 1}


async def test_different_accept_is_another_question(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    await head(first)
    await first.settle()
    await second.upstream.head_manifest(REPO, "1", image.media_type)
    await second.settle()
    await first.upstream.head_manifest(REPO, "1", image.media_type)
    await second.upstream.head_manifest(REPO, "1", ACCEPT)
    assert manifest_requests(hub) == {"HEAD": 2, "GET": 0}


async def test_node_asks_itself_when_the_holder_of_the_lease_does_not_answer(
    hub: Hub, nodes: list[SharedSetup], image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_answers, "WAIT_SECONDS", 0.2)
    lease = await nodes[0].leases.acquire(f"tag/{keys.hashed(HOST, REPO, '1', ACCEPT)}")
    assert isinstance(lease, Lease)
    assert await head(nodes[1]) == image.digest
    await lease.release()


async def test_answer_without_digest_is_not_waited_for(hub: Hub, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be shared: all nodes ask as soon as the lease is released."""
    monkeypatch.setattr(shared_answers, "WAIT_SECONDS", 60.0)
    hub.faults.add(Fault(kind="manifest", method="HEAD", delay=0.1, drop=("Docker-Content-Digest",)))
    async with shared_upstreams(hub, 3) as many, asyncio.timeout(20):
        assert await asyncio.gather(*(head(node) for node in many)) == [None] * 3
    assert manifest_requests(hub) == {"HEAD": 3, "GET": 0}


async def test_node_that_gets_the_lease_late_finds_the_answer(
    hub: Hub, nodes: list[SharedSetup], image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    acquire = second.leases.acquire

    async def acquire_late(name: str) -> Any:
        await get(first)
        await first.settle()
        return await acquire(name)

    monkeypatch.setattr(second.leases, "acquire", acquire_late)
    monkeypatch.setattr(leases, "RETIRED_SECONDS", 0.0)  # as if the first look had been longer ago
    assert await get(second) == image.manifest
    assert manifest_requests(hub) == {"HEAD": 0, "GET": 1}


async def test_older_answer_that_is_written_later_does_not_replace_a_newer_one(
    hub: Hub, nodes: list[SharedSetup], image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node whose request took long, so that another one did not wait for it."""
    monkeypatch.setattr(shared_answers, "WAIT_SECONDS", 0.0)
    first, second = nodes
    await first.upstream.anonymous_authorization(REPO)
    fault = hub.faults.add(Fault(kind="manifest", delay=0.5, times=1))
    asking = asyncio.create_task(head(first))
    await until(lambda: fault.hits)
    moved = hub.image(REPO, "1", [b"moved"])
    assert await head(second) == moved.digest
    await second.settle()
    assert await asking == image.digest
    await first.settle()
    hub.reset_log()
    assert await head(first) == await head(second) == moved.digest
    assert not any(manifest_requests(hub).values())


async def test_shared_answer_expires_for_all_at_the_same_time(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    asked = await first.upstream.head_manifest(REPO, "1", ACCEPT)
    await first.settle()
    advance(nodes, 590)
    shared = await second.upstream.head_manifest(REPO, "1", ACCEPT)
    assert shared.answered_at == pytest.approx(asked.answered_at, abs=1.0)
    assert manifest_requests(hub) == {"HEAD": 1, "GET": 0}
    advance(nodes, 15)
    await second.upstream.head_manifest(REPO, "1", ACCEPT)
    assert manifest_requests(hub) == {"HEAD": 2, "GET": 0}


async def test_nodes_may_have_clocks_that_differ_by_ten_minutes(hub: Hub, image: Image) -> None:
    from obstore.store import MemoryStore

    store = MemoryStore()
    async with shared_upstream(hub, store, "one", error=600.0) as one, shared_upstream(hub, store, "two") as two:
        for first, second in ((one, two), (two, one)):
            hub.reset_log()
            await get(first)
            await first.settle()
            fetched = await second.upstream.get_manifest(REPO, "1", ACCEPT)
            assert second.clock.wall() - fetched.answered_at == pytest.approx(0.0, abs=3.0)
            assert manifest_requests(hub) in ({"HEAD": 0, "GET": 1}, {"HEAD": 1, "GET": 0})
            advance([one, two], 595)
            await head(second)
            assert sum(manifest_requests(hub).values()) == 1
            advance([one, two], 10)


async def test_newer_answer_is_requested_by_a_refresh(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    """Tags are validated before they expire: the answer that is known must not count as a new one."""
    first, second = nodes
    known = (await first.upstream.head_manifest(REPO, "1", ACCEPT)).answered_at
    await first.settle()
    advance(nodes, 500)
    halfway = known + 250
    renewed = await first.upstream.head_manifest(REPO, "1", ACCEPT, not_before=halfway)
    await first.settle()
    assert renewed.answered_at >= known + 499
    assert (await second.upstream.head_manifest(REPO, "1", ACCEPT, not_before=halfway)).answered_at > halfway
    assert manifest_requests(hub) == {"HEAD": 2, "GET": 0}


async def test_nothing_about_tags_is_shared_without_a_lifetime(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    for node in nodes:
        node.sharing.lifetimes.tag = 0.0
        await head(node)
        await node.settle()
    assert manifest_requests(hub) == {"HEAD": 2, "GET": 0}
    assert await nodes[0].bucket.get(TAG) is None


async def test_old_bytes_are_used_after_a_head_shows_access(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    digest = Digest.parse(image.digest)
    await get(nodes[0], digest)
    await nodes[0].settle()
    advance(nodes, 3601)
    assert await get(nodes[1], digest) == image.manifest
    await nodes[1].settle()
    assert await get(nodes[0], digest) == image.manifest
    assert manifest_requests(hub) == {"HEAD": 1, "GET": 1}


async def test_leases_are_released(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    await asyncio.gather(*(get(node) for node in nodes), *(head(node) for node in nodes))
    for node in nodes:
        await node.settle()
    assert [entry.key async for entry in nodes[0].bucket.list("lease")] == []
