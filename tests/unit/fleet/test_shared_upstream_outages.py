"""Shared answers of a registry while the registry or the bucket fails."""

import asyncio
from typing import Any

import pytest
from hubcache.fleet import bucket
from hubcache.fleet.bucket import BucketUnavailable
from hubcache.oci.digest import Digest
from hubcache.oci.errors import TooManyRequests, Unavailable
from support.shared_upstreams import (
    ACCEPT,
    HOST,
    REPO,
    SharedSetup,
    advance,
    error_of,
    get,
    head,
    shared_upstream_fixtures,
)
from support.standin import Fault, Hub, Image

short_waits, nodes, image = shared_upstream_fixtures()


async def test_stale_answer_is_used_while_the_registry_is_down(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    first, second = nodes
    asked = await first.upstream.get_manifest(REPO, "1", ACCEPT)
    await first.settle()
    advance(nodes, 3700)
    hub.faults.add(Fault(kind="manifest", status=503))
    digest = Digest.parse(image.digest)
    found = await second.upstream.get_manifest(REPO, "1", ACCEPT)
    assert found.body == await get(second, digest) == image.manifest
    assert await head(second) == await head(second, digest) == digest
    assert found.answered_at == pytest.approx(asked.answered_at, abs=1.0)
    assert (await second.upstream.head_manifest(REPO, "1", ACCEPT, not_before=found.answered_at)).digest == digest
    with pytest.raises(Unavailable):  # the caller has a newer answer, although it is stale
        await second.upstream.head_manifest(REPO, "1", ACCEPT, not_before=found.answered_at + 5)
    second.sharing.lifetimes.max_stale = 60.0
    for request in (get(second), get(second, digest), head(second)):
        assert isinstance(await error_of(request), Unavailable)


async def test_stale_answer_is_used_during_a_pause_of_the_registry(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    first, second = nodes
    await get(first)
    await first.settle()
    advance(nodes, 601)
    second.upstream.pause("manifest", 60.0)
    hub.reset_log()
    assert await get(second) == image.manifest
    with pytest.raises(TooManyRequests):
        await get(second, "2")
    assert hub.count() == 0


async def test_pause_is_reported(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    hub.faults.add(Fault(kind="manifest", status=429, headers={"Retry-After": "300"}))
    with pytest.raises(TooManyRequests):
        await get(nodes[0])
    assert nodes[0].pauses == [(HOST, "manifest", 300.0)]


@pytest.mark.parametrize("failing", ["get_async", "put_async", "delete_async"])
async def test_node_works_alone_while_the_bucket_is_down(
    hub: Hub, nodes: list[SharedSetup], image: Image, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise OSError("connection refused")

    monkeypatch.setattr("obstore." + failing, fail)
    digest = Digest.parse(image.digest)
    for node in nodes:
        assert await get(node) == await get(node, digest) == image.manifest
        assert await head(node) == await head(node, digest) == image.digest
        await node.settle()


async def test_slow_bucket_delays_one_request_only(
    hub: Hub, nodes: list[SharedSetup], image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 0.05)
    waiting = 0

    async def hang(*_: Any, **__: Any) -> Any:
        nonlocal waiting
        waiting += 1
        await asyncio.sleep(3600)

    monkeypatch.setattr("obstore.get_async", hang)
    assert await get(nodes[0]) == await get(nodes[0]) == image.manifest
    assert await head(nodes[0]) == image.digest
    assert waiting == 1


async def test_bucket_that_fails_in_the_middle_is_no_error(
    hub: Hub, nodes: list[SharedSetup], image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is acquired, and then the bucket is down."""
    read = nodes[0].sharing.answers.read
    calls = 0

    async def read_once(key: str) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise BucketUnavailable("down")
        return await read(key)

    monkeypatch.setattr(nodes[0].sharing.answers, "read", read_once)
    assert await head(nodes[0]) == image.digest
