"""Shared answers of a registry after a push, a deletion, or another node's answer to the same request."""

import asyncio

import pytest
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
    shared_upstream_fixtures,
    shared_upstreams,
)
from support.standin import Fault, Hub, Image
from support.users import until

short_waits, nodes, image = shared_upstream_fixtures()


async def push(hub: Hub, node: SharedSetup, content: bytes) -> Image:
    """Push a tag, and report it to the bucket only: no event reaches the other nodes."""
    pushed = hub.image(REPO, "1", [content])
    await node.sharing.answers.mark_changed(TAG)
    return pushed


async def test_push_ends_the_shared_answer(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    await get(nodes[0])
    await nodes[0].settle()
    pushed = await push(hub, nodes[0], b"pushed")
    assert await get(nodes[1]) == pushed.manifest


@pytest.mark.parametrize("is_known", [False, True])
async def test_answer_from_before_a_push_does_not_replace_it(
    hub: Hub, nodes: list[SharedSetup], image: Image, is_known: bool
) -> None:
    first, second = nodes
    await first.upstream.anonymous_authorization(REPO)
    if is_known:
        await get(first)
        await first.settle()
        advance(nodes, 601)
    method = "HEAD" if is_known else "GET"
    fault = hub.faults.add(Fault(kind="manifest", method=method, delay=0.5, times=1))
    asking = asyncio.create_task(head(first) if is_known else get(first))
    await until(lambda: fault.hits)
    pushed = await push(hub, second, b"pushed")
    assert await asking == (image.digest if is_known else image.manifest)
    await first.settle()
    assert await get(second) == pushed.manifest
    assert await head(second) == pushed.digest


async def test_answers_of_nodes_that_write_at_the_same_time_are_all_kept(hub: Hub, image: Image) -> None:
    accepts = [ACCEPT, image.media_type, f"{image.media_type}, */*"]
    hub.faults.add(Fault(kind="manifest", delay=0.1))
    async with shared_upstreams(hub, 3) as many:
        asked = zip(many, accepts, strict=True)
        await asyncio.gather(*(node.upstream.head_manifest(REPO, "1", accept) for node, accept in asked))
        for node in many:
            await node.settle()
        hub.reset_log()
        for accept in accepts:
            assert (await many[0].upstream.head_manifest(REPO, "1", accept)).digest == image.digest
    assert not any(manifest_requests(hub).values())


async def test_older_shared_answer_is_not_used_after_an_event(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    """The bucket may not have received the push."""
    first, second = nodes
    await get(first)
    await first.settle()
    pushed = hub.image(REPO, "1", [b"pushed"])
    advance(nodes, 5)
    second.sharing.record_change(HOST, REPO, "1", second.clock.wall())
    advance(nodes, 5)
    assert await get(second) == pushed.manifest
    await second.settle()
    hub.reset_log()
    assert await get(first) == pushed.manifest
    assert not any(manifest_requests(hub).values())


async def test_tags_of_a_deleted_manifest_are_not_used(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    await get(first)
    await first.settle()
    advance(nodes, 5)
    second.sharing.record_change(HOST, REPO, image.digest, second.clock.wall())
    advance(nodes, 5)
    hub.reset_log()
    await head(second)
    assert manifest_requests(hub) == {"HEAD": 1, "GET": 0}
