"""Tags, manifests, errors and pauses in a fleet: the registry is asked once, and nothing is served for longer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hubcache.fleet import keys, membership
from hubcache.serve.messages import Answer, Listener, Result
from obstore.store import MemoryStore
from support import fleet_engines
from support.fleet_answers import HOST, REPO, TAG, Nodes, fleet_answer_fixtures, objects, opened, pull, report, requests
from support.standin import Fault, Hub, Image
from support.tag_refresh import ask_tag, popular, tick
from support.users import until

bucket, nodes, image = fleet_answer_fixtures()


async def test_registry_gets_one_head_and_one_get_for_a_tag_and_its_lifetime(
    hub: Hub, nodes: Nodes, image: Image
) -> None:
    hub.faults.add(Fault(kind="manifest", delay=0.2))
    for expected in ((1, 1), (1, 0), (1, 0)):
        hub.reset_log()
        found = await asyncio.gather(*(pull(cache) for cache in nodes))
        assert found == [(200, image.manifest)] * 3
        assert requests(hub) == expected
        await nodes.settle()
        nodes.advance(61)
    moved = hub.image(REPO, "1", [b"moved"])
    hub.reset_log()
    assert await asyncio.gather(*(pull(cache) for cache in nodes)) == [(200, moved.manifest)] * 3
    assert requests(hub) == (1, 1)


async def test_tag_expires_for_all_nodes_at_the_same_time(hub: Hub, nodes: Nodes, image: Image) -> None:
    await pull(nodes[0])
    await nodes.settle()
    nodes.advance(50)
    await pull(nodes[1])
    moved = hub.image(REPO, "1", [b"moved"])
    assert await pull(nodes[1]) == (200, image.manifest)
    nodes.advance(12)
    for cache in reversed(nodes):
        assert await pull(cache) == (200, moved.manifest)


async def test_clocks_may_differ_by_ten_minutes(hub: Hub, nodes: Nodes, image: Image) -> None:
    nodes.clocks[1].error, nodes.clocks[2].error = 600.0, -600.0
    for first, second in ((0, 1), (1, 2), (2, 0)):
        hub.reset_log()
        await pull(nodes[first])
        await nodes.settle()
        asked = requests(hub)
        nodes.advance(50)
        assert await pull(nodes[second]) == (200, image.manifest)
        assert requests(hub) == asked
        nodes.advance(15)
        await pull(nodes[second])
        assert requests(hub) == (asked[0] + 1, asked[1])
        await nodes.settle()
        nodes.advance(61)


async def test_errors_are_shared_and_expire_for_all_nodes(hub: Hub, nodes: Nodes) -> None:
    missing = f"/v2/{REPO}/manifests/missing"
    hub.image(REPO, "1", [b"layer"])
    assert (await pull(nodes[0]))[0] == 200
    assert (await pull(nodes[0], missing))[0] == 404
    await nodes.settle()
    hub.reset_log()
    nodes.advance(20)
    assert (await pull(nodes[1], missing))[0] == 404
    assert requests(hub) == (0, 0)
    pushed = hub.image(REPO, "missing", [b"new"])
    nodes.advance(12)  # counted from the registry's answer, also where an error was remembered later
    assert await pull(nodes[1], missing) == (200, pushed.manifest)


async def test_pause_of_the_registry_holds_for_all_nodes(hub: Hub, nodes: Nodes, image: Image) -> None:
    fault = hub.faults.add(Fault(kind="manifest", status=429, headers={"Retry-After": "60"}))
    assert (await nodes[0].get(Listener.MIRROR, TAG))[0] == 429
    others: list[Any] = [cache.engine._upstreams[HOST] for cache in nodes[1:]]
    await until(lambda: all(upstream.is_rate_limited("manifest", "") for upstream in others))
    hub.faults.remove(fault)
    hub.reset_log()
    assert [(await cache.get(Listener.MIRROR, TAG))[0] for cache in nodes] == [429] * 3
    assert hub.count(kind="manifest") == 0
    nodes.advance(61)
    assert [await cache.get(Listener.MIRROR, TAG) for cache in nodes] == [(200, image.manifest)] * 3


async def test_tag_is_validated_once_before_it_expires(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Image
) -> None:
    """The answer that all nodes know does not count as a new one, and a new one counts for all."""
    monkeypatch.setattr(membership, "HEARTBEAT_SECONDS", 3600.0)
    async with fleet_engines.nodes(hub, tmp_path, 2, tag_ttl=60.0, sync=True) as caches:
        nodes = await opened(caches, monkeypatch)
        for cache in nodes:
            await cache.engine._housekeeping.close()
            await popular(cache, image)
            await nodes.settle()
        hub.reset_log()
        nodes.advance(55)
        for cache in nodes:
            await tick(cache)
            await nodes.settle()
        assert requests(hub) == (1, 0)
        nodes.advance(50)
        for cache in nodes:
            answer, _ = await ask_tag(cache, image)
            assert answer.result is Result.HIT
        assert requests(hub) == (1, 0)


async def test_push_is_seen_by_all_nodes(hub: Hub, nodes: Nodes, image: Image) -> None:
    assert [await pull(cache) for cache in nodes] == [(200, image.manifest)] * 3
    await nodes.settle()
    pushed = hub.image(REPO, "1", [b"pushed"])
    async with asyncio.timeout(10):
        await report(nodes[0], "1")
    hub.reset_log()
    assert await asyncio.gather(*(pull(cache) for cache in nodes)) == [(200, pushed.manifest)] * 3
    assert requests(hub) == (1, 1)


async def test_push_is_seen_by_a_node_that_validates_at_the_same_moment(hub: Hub, nodes: Nodes, image: Image) -> None:
    for cache in nodes:
        await pull(cache)
    await nodes.settle()
    nodes.advance(61)
    validator: Any = nodes[1].engine
    await validator._upstreams[HOST].anonymous_authorization(
        REPO
    )  # the request that is delayed is the one with a token
    fault = hub.faults.add(Fault(kind="manifest", method="HEAD", delay=0.5, times=1))
    validating = asyncio.create_task(nodes[1].get(Listener.MIRROR, TAG))
    await until(lambda: fault.hits)
    pushed = hub.image(REPO, "1", [b"pushed"])
    await report(nodes[0], "1")
    assert await validating == (200, image.manifest)
    await nodes.settle()
    for cache in nodes:
        assert await pull(cache) == (200, pushed.manifest)


async def test_delete_is_seen_by_all_nodes(hub: Hub, nodes: Nodes, image: Image) -> None:
    digest = f"/v2/{REPO}/manifests/{image.digest}"
    for cache in nodes:
        assert await pull(cache) == await pull(cache, digest) == (200, image.manifest)
    await nodes.settle()
    hub.faults.add(Fault(kind="manifest", status=404, body={"errors": [{"code": "MANIFEST_UNKNOWN", "message": ""}]}))
    nodes.advance(1)
    await report(nodes[0], image.digest)
    nodes.advance(1)
    for cache in reversed(nodes):
        assert (await pull(cache))[0] == (await pull(cache, digest))[0] == 404


@pytest.mark.usefixtures("short_times")
async def test_stale_tag_of_another_node_is_served_while_the_registry_is_down(
    hub: Hub, nodes: Nodes, image: Image
) -> None:
    await pull(nodes[0])
    await nodes.settle()
    nodes.advance(3600)
    hub.faults.add(Fault(kind="manifest", status=503))
    assert await pull(nodes[1]) == (200, image.manifest)
    for method in ("HEAD", "GET"):
        answer, _ = await nodes[2].ask(Listener.MIRROR, method, TAG)
        assert isinstance(answer, Answer)
        assert answer.result is Result.STALE
    nodes.advance(86400)
    assert (await pull(nodes[1]))[0] == 503


async def test_damaged_objects_are_ignored(hub: Hub, bucket: MemoryStore, nodes: Nodes, image: Image) -> None:
    await pull(nodes[0])
    await nodes.settle()
    for key in (*objects(bucket, "tag"), *objects(bucket, "manifest")):
        bucket.put(key, b'{"format": 2, "answers": "of a newer version"}')
    hub.reset_log()
    assert await pull(nodes[1]) == (200, image.manifest)
    await nodes.settle()
    assert await pull(nodes[2]) == (200, image.manifest)
    assert requests(hub) == (1, 1)


async def test_node_without_the_bucket_is_like_one_machine(
    hub: Hub, nodes: Nodes, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise OSError("connection refused")

    for name in ("get_async", "put_async", "delete_async"):
        monkeypatch.setattr(f"obstore.{name}", fail)
    for cache in nodes:
        assert await pull(cache) == (200, image.manifest)
    pushed = hub.image(REPO, "1", [b"pushed"])
    await report(nodes[0], "1")
    for cache in nodes:
        assert await pull(cache) == (200, pushed.manifest)


async def test_key_of_the_tag_is_where_the_sweeper_expects_it(
    hub: Hub, bucket: MemoryStore, nodes: Nodes, image: Image
) -> None:
    await pull(nodes[0])
    await nodes.settle()
    assert objects(bucket, "tag") == [keys.tag(HOST, REPO, "1")]
    assert len(objects(bucket, "manifest")) == 1
    await until(lambda: objects(bucket, "lease") == [])
