"""Blobs that a fleet shares: one fetch for all nodes; and what happens when the fetching node or the bucket fails."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import pytest
from aiohttp import web
from hubcache.fleet import bucket, keys, peer_server, peer_transfer, shared_blobs, shared_fill, values
from hubcache.fleet.bucket import BucketUnavailable
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, BlobUnknown, Denied, HubcacheError, NotStored, Unauthorized, Unavailable
from hubcache.store.staging import Staged
from hubcache.transfer import fills as fills_module
from hubcache.transfer.fill import Fill
from support.fleet_nodes import REPO, SharingFleet, SharingNode, drained, settled
from support.standin import Fault, Hub, random_bytes
from support.users import until

LAYER = random_bytes(3_000_000, "layer")
DIGEST = Digest.of(LAYER)
KEY = keys.blob(DIGEST)


@pytest.fixture
def fleet(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharingFleet:
    """A fleet whose registry has one layer, with short pauses."""
    monkeypatch.setattr(fills_module, "_BACKOFF_SECONDS", 0.005)
    monkeypatch.setattr(peer_server, "_SHUTDOWN_SECONDS", 0.05)
    monkeypatch.setattr(shared_blobs, "_FIRST_PAUSE", 0.005)
    monkeypatch.setattr(shared_blobs, "_LONGEST_PAUSE", 0.02)
    hub.image(REPO, "1", [LAYER])
    return SharingFleet(hub, tmp_path, monkeypatch)


async def pull_all(nodes: list[SharingNode], clients: int = 1) -> None:
    """Pull the layer through all nodes at once, by several clients of each."""
    pulled = await asyncio.gather(*(node.pull(DIGEST) for node in nodes for _ in range(clients)))
    assert all(data == LAYER for data in pulled)


async def test_new_blob_is_fetched_once_for_all_clients_of_all_nodes(fleet: SharingFleet) -> None:
    async with fleet.nodes(4) as nodes:
        await pull_all(nodes, clients=6)
        await settled(*nodes)
        assert all(node.store.has(DIGEST) for node in nodes)
        assert fleet.fetched(DIGEST) == 1
        assert sum(node.line.seen.received for node in nodes) == len(LAYER)
        assert sum(node.counts.uploads["stored"] for node in nodes) == 1
        assert sum(sum(node.counts.received.values()) for node in nodes) == 3 * len(LAYER)
        assert sum(node.counts.received["peer"] for node in nodes) > 0
    assert await fleet.object(KEY) == LAYER
    assert await fleet.keys("lease") == []


async def test_blob_in_the_bucket_is_not_fetched(fleet: SharingFleet) -> None:
    async with fleet.nodes(2) as (first, second):
        assert await first.pull(DIGEST) == LAYER
        await settled(first)
        before = second.counts.requests.copy()
        assert before == {}
        fill = second.start(DIGEST)
        assert await second.pull(DIGEST) == LAYER
        assert fill.answered_at is None, "the registry was not asked"
        await fill.wait_stored()
        assert second.counts.requests == {"get": {"ok": 1}}
        assert second.counts.received == {"bucket": len(LAYER)}
        assert second.counts.uploads == {}
        assert fleet.fetched(DIGEST) == 1
        assert second.line.seen.received == 0


async def test_small_blobs_are_shared(fleet: SharingFleet) -> None:
    for content in (b"", b"x"):
        digest = Digest.of(content)
        fleet.hub.image(REPO, "small", [content])
        async with fleet.nodes(2) as nodes:
            for node in nodes:
                assert await node.pull(digest) == content
                await settled(node)
        assert fleet.fetched(digest) == 1
        assert await fleet.object(keys.blob(digest)) == content


# -- the node that fetches fails ------------------------------------------------------------------------------------


async def begun(fleet: SharingFleet, holder: SharingNode, fault: Fault) -> asyncio.Task[bytes]:
    """Have a node fetch the layer from a registry that stops in the middle; return the pull of its client."""
    fleet.hub.faults.add(fault)
    pulling = asyncio.create_task(holder.pull(DIGEST))
    await until(lambda: (fill := holder.fills.get(DIGEST)) is not None and fill.written >= 1_000_000)
    return pulling


async def following(nodes: list[SharingNode]) -> list[asyncio.Task[bytes]]:
    """Have nodes receive the layer from the one that fetches it; return the pulls of their clients."""
    pulls = [asyncio.create_task(node.pull(DIGEST)) for node in nodes]
    await until(lambda: all(node.counts.received["peer"] >= 900_000 for node in nodes))
    return pulls


def resumed_at(fleet: SharingFleet, number: int = 1) -> int:
    """Return the first byte that a request for the layer to the registry asked for."""
    ranges = [record.header("Range") for record in fleet.hub.requests(kind="cdn")]
    assert len(ranges) == number + 1
    header = ranges[number]
    assert header is not None
    return int(header.removeprefix("bytes=").partition("-")[0])


async def hold_lease(fleet: SharingFleet, digest: Digest, address: str = "") -> None:
    """Have a node, which cannot be reached if it has no address, hold the lease of a blob."""
    value = values.encode_value({"node": "elsewhere", "address": address, "token": "x"})
    await fleet.bucket.put(keys.lease(f"blob/{digest}"), value)


def count_calls(monkeypatch: pytest.MonkeyPatch, node: SharingNode, name: str) -> list[None]:
    """Return a list that grows with each call of a method of the node's `SharedBlobs`."""
    calls: list[None] = []
    method = getattr(node.shared, name)

    def count(*arguments: object) -> object:
        calls.append(None)
        return method(*arguments)

    monkeypatch.setattr(node.shared, name, count)
    return calls


async def failure(pulling: asyncio.Task[bytes]) -> HubcacheError:
    with pytest.raises(HubcacheError) as caught:
        await pulling
    return caught.value


async def test_others_finish_when_the_process_that_fetches_dies(fleet: SharingFleet) -> None:
    async with fleet.nodes(4) as (holder, *others):
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        pulls = await following(others)
        await holder.vanish()
        await failure(pulling)
        fleet.hub.faults.remove(fault)
        await asyncio.sleep(0.05)
        assert not any(pull.done() for pull in pulls), "the lease of the dead node lives"
        fleet.expired.add(holder.name)
        assert [await pull for pull in pulls] == [LAYER] * 3
        assert resumed_at(fleet) >= 900_000, "one node takes over, where the bytes ended"


async def test_others_finish_when_the_fill_of_the_node_that_fetches_fails(fleet: SharingFleet) -> None:
    """The registry sends wrong bytes once."""
    async with fleet.nodes(3) as (holder, *others):
        fault = Fault(kind="cdn", pause_after=1_000_000, corrupt_at=2_900_000, times=1)
        pulling = await begun(fleet, holder, fault)
        pulls = await following(others)
        fleet.hub.faults.remove(fault)
        assert isinstance(await failure(pulling), BadUpstream)
        outcomes = await asyncio.gather(*pulls, return_exceptions=True)
        # Those that have received the wrong byte cannot finish this answer; no client gets it as a complete one.
        assert all(outcome == LAYER or isinstance(outcome, BadUpstream) for outcome in outcomes)
        await pull_all([holder, *others])
        assert fleet.fetched(DIGEST) <= 4


async def test_others_take_over_where_a_fill_broke_off(fleet: SharingFleet) -> None:
    async with fleet.nodes(3) as (holder, *others):
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        pulls = await following(others)
        pulling.cancel()
        fill = holder.fills.get(DIGEST)
        assert fill is not None
        holder.fills._cancel_fill(fill)
        assert [await pull for pull in pulls] == [LAYER] * 2
        fleet.hub.faults.remove(fault)
        assert 900_000 <= resumed_at(fleet) <= 1_000_000


async def test_stalled_node_is_waited_for_while_its_lease_is_renewed(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(2) as (holder, other):
        monkeypatch.setattr(other.peers._downloads, "_progress_seconds", 0.05)
        asked = count_calls(monkeypatch, other, "_is_renewed")
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        (pull,) = await following([other])
        await until(lambda: len(asked) >= 3)
        assert not pull.done()
        fleet.hub.faults.remove(fault)
        assert await pull == LAYER
        assert await pulling == LAYER
        assert fleet.fetched(DIGEST) == 1


async def test_stalled_node_is_replaced_when_its_lease_expires(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(3) as (holder, *others):
        for other in others:
            monkeypatch.setattr(other.peers._downloads, "_progress_seconds", 0.05)
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        pulls = await following(others)
        fleet.expired.add(holder.name)
        assert [await pull for pull in pulls] == [LAYER] * 2
        assert fleet.fetched(DIGEST) == 2
        assert resumed_at(fleet) >= 900_000
        fleet.hub.faults.remove(fault)
        assert await pulling == LAYER


async def test_patience_with_a_stalled_node_ends(fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_transfer, "STALL_SECONDS", 10.0)
    async with fleet.nodes(2) as (holder, other):
        monkeypatch.setattr(other.peers._downloads, "_progress_seconds", 0.05)
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        assert await other.pull(DIGEST) == LAYER
        assert not pulling.done()
        assert fleet.fetched(DIGEST) == 2
        fleet.hub.faults.remove(fault)
        assert await pulling == LAYER


async def test_node_that_cannot_reach_the_one_that_fetches_waits_for_the_bucket(fleet: SharingFleet) -> None:
    async with fleet.nodes(2) as (holder, other):
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        await holder.server.close()
        pull = asyncio.create_task(other.pull(DIGEST))
        await until(lambda: other.counts.requests.get("get", {}).get("absent", 0) >= 3)
        fleet.hub.faults.remove(fault)
        assert await pull == LAYER
        assert await pulling == LAYER
        assert fleet.fetched(DIGEST) == 1
        assert other.counts.received == {"bucket": len(LAYER)}


async def test_node_that_cannot_reach_the_one_that_fetches_asks_the_registry_after_a_while(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    async with fleet.nodes(2) as (holder, other):
        fault = Fault(kind="cdn", pause_after=1_000_000, times=1)
        pulling = await begun(fleet, holder, fault)
        await holder.server.close()
        assert await other.pull(DIGEST) == LAYER
        fleet.hub.faults.remove(fault)
        assert await pulling == LAYER
        await settled(holder, other)
        assert fleet.fetched(DIGEST) == 2
        uploads = [node.counts.uploads["stored"] for node in (holder, other)]
        assert uploads in ([0, 1], [1, 0], [1, 1]), "without a lease, the bucket is looked at before the upload"


async def test_refusal_of_the_registry_is_passed_on(fleet: SharingFleet) -> None:
    unknown = Digest.of(b"unknown")
    async with fleet.nodes(2) as nodes:
        for node in nodes:
            with pytest.raises(BlobUnknown):
                await node.pull(unknown)
            await node.shared.close()
        assert await fleet.keys("lease") == []


class BrokenNode:
    """A node that answers with the first bytes of a body, and then as `misbehave` does; it holds the lease of the layer
    and goes on renewing it."""

    def __init__(self, fleet: SharingFleet, sent: bytes, misbehave: Callable[[web.StreamResponse], Awaitable[object]]):
        self._fleet = fleet
        self._sent = sent
        self._misbehave = misbehave
        self.requests = 0

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        response = web.StreamResponse(headers={"Content-Length": str(len(LAYER))})
        await response.prepare(request)
        await response.write(self._sent)
        await self._misbehave(response)
        assert request.transport is not None
        request.transport.close()
        return response

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        app = web.Application()
        app.router.add_get("/blob/{digest}", self._serve)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        await hold_lease(self._fleet, DIGEST, f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield self
        finally:
            await runner.cleanup()


async def nothing(_: web.StreamResponse) -> None:
    """Break off after the first bytes."""


async def trickle(response: web.StreamResponse) -> None:
    """Send the last bytes one by one."""
    for value in LAYER[-1_000:]:
        await asyncio.sleep(0.02)
        await response.write(bytes([value]))


async def test_node_whose_body_breaks_off_is_not_asked_again(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempts of the fill would be used up."""
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    async with BrokenNode(fleet, LAYER[:500], nothing).running() as broken, fleet.node("a") as node:
        assert await node.pull(DIGEST) == LAYER
        assert broken.requests == 1
        assert fleet.fetched(DIGEST) == 1


async def test_node_that_sends_too_slowly_is_given_up(fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(peer_transfer, "PATIENCE_SECONDS", 0.1)
    async with BrokenNode(fleet, LAYER[:-1_000], trickle).running() as broken, fleet.node("a") as node:
        assert await node.pull(DIGEST) == LAYER
        assert broken.requests == 1
        assert fleet.fetched(DIGEST) == 1


async def test_node_is_not_asked_again_after_wrong_bytes_to_which_the_registry_added_the_rest(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    async with BrokenNode(fleet, b"wrong", nothing).running() as broken, fleet.node("a") as node:
        with pytest.raises(BadUpstream):
            await node.pull(DIGEST)
        assert await node.pull(DIGEST) == LAYER
        assert broken.requests == 1


async def test_wrong_bytes_of_a_node_do_not_delete_the_object(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_fill, "PATIENCE_SECONDS", 0.1)
    async with BrokenNode(fleet, b"?" * len(LAYER), nothing).running() as broken, fleet.node("a") as node:
        with pytest.raises(BadUpstream):
            await node.pull(DIGEST)
        await fleet.bucket.put(KEY, LAYER)
        assert await node.pull(DIGEST) == LAYER
        await node.shared.close()
        assert await fleet.object(KEY) == LAYER
        assert broken.requests == 1


# -- the bucket fails -----------------------------------------------------------------------------------------------


async def test_object_with_wrong_bytes_is_replaced(fleet: SharingFleet) -> None:
    await fleet.bucket.put(KEY, LAYER[:-1_000] + bytes(1_000))
    async with fleet.nodes(2) as (first, second):
        fill = first.start(DIGEST)
        with fill.reading():
            size = await fill.wait_opened()
            source = first.follow(fill, size)
        with pytest.raises(BadUpstream):
            await drained(source)
        assert source.at < size, "no client gets wrong bytes as a complete body"
        await until(lambda: not first.shared._objects._deletions)
        assert await fleet.object(KEY) is None, "it is not tried again and again"
        assert await first.pull(DIGEST) == LAYER
        await settled(first)
        assert await fleet.object(KEY) == LAYER
        assert await second.pull(DIGEST) == LAYER
        assert fleet.fetched(DIGEST) == 1


async def test_object_with_wrong_bytes_that_cannot_be_deleted_is_not_used_again(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = LAYER[:-1] + b"?"
    await fleet.bucket.put(KEY, wrong)

    async def fail(*_: object) -> None:
        raise BucketUnavailable("down")

    async with fleet.node("a") as node:
        monkeypatch.setattr(node.bucket, "delete", fail)
        with pytest.raises(BadUpstream):
            await node.pull(DIGEST)
        assert await node.pull(DIGEST) == LAYER
        await settled(node)
        assert await fleet.object(KEY) == LAYER, "it is replaced"


@pytest.mark.parametrize("wrong", [LAYER[:-1], LAYER + b"?", b""])
async def test_object_of_wrong_length_is_replaced(fleet: SharingFleet, wrong: bytes) -> None:
    await fleet.bucket.put(KEY, wrong)
    async with fleet.node("a") as node:
        host = node.line.upstream.registry.host
        await node.store.links.put(host, REPO, {DIGEST: len(LAYER)})
        assert await node.pull(DIGEST) == LAYER
        await settled(node)
    assert fleet.fetched(DIGEST) == 1
    assert await fleet.object(KEY) == LAYER


async def test_correct_object_is_kept_when_a_manifest_states_a_wrong_size(fleet: SharingFleet) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        host = node.line.upstream.registry.host
        await node.store.links.put(host, REPO, {DIGEST: 5})
        fill = node.start(DIGEST, size=5)
        with pytest.raises(BadUpstream):
            await fill.wait_stored()
        await settled(node)
    assert await fleet.object(KEY) == LAYER


@pytest.mark.parametrize("after", [500_000, 2_000_000])
async def test_body_from_the_bucket_that_breaks_off_is_resumed(fleet: SharingFleet, after: int) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        node.bucket.break_after = after
        assert await node.pull(DIGEST) == LAYER
        await settled(node)
        assert node.counts.uploads == {}, "the bucket has it"
        from_bucket = node.counts.received["bucket"]
    if after > shared_fill.PROGRESS_BYTES:
        assert (from_bucket, fleet.fetched(DIGEST)) == (len(LAYER), 0)
    else:
        assert (from_bucket, resumed_at(fleet, 0)) == (after, after)


async def test_bucket_that_is_down_is_not_waited_for(fleet: SharingFleet) -> None:
    async with fleet.nodes(2) as nodes:
        for node in nodes:
            node.bucket.is_down = True
        await pull_all(nodes)
        assert all(node.counts.requests == {} or "error" in node.counts.requests["get"] for node in nodes)
        for node in nodes:
            node.bucket.is_down = False
        await settled(*nodes)
    assert await fleet.object(KEY) == LAYER


async def test_slow_bucket_is_not_waited_for(fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 0.05)
    async with fleet.node("a") as node:

        async def hang(*_: object) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(node.bucket, "open", hang)
            assert await node.pull(DIGEST) == LAYER
            await settled(node)


# -- blobs that are not stored --------------------------------------------------------------------------------------


async def test_blob_that_is_not_stored_comes_from_the_bucket(fleet: SharingFleet) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        assert await drained(node.stream(DIGEST, 0, len(LAYER))) == LAYER
        assert fleet.fetched(DIGEST) == 0
        assert node.counts.received == {"bucket": len(LAYER)}
        assert await fleet.keys("lease") == []


@pytest.mark.parametrize("has_link", [True, False])
async def test_part_that_is_not_stored_comes_from_the_registry(fleet: SharingFleet, has_link: bool) -> None:
    """The digest verifies whole blobs only, and anyone who can write the bucket could change the bytes."""
    await fleet.bucket.put(KEY, b"E" * len(LAYER))
    async with fleet.node("a") as node:
        if has_link:
            await node.store.links.put(node.line.upstream.registry.host, REPO, {DIGEST: len(LAYER)})
        parts = ((0, 100), (0, len(LAYER) - 1), (1_000, 2_000_000), (5, 6), (5, len(LAYER)))
        for start, end in parts:
            assert await drained(node.stream(DIGEST, start, end)) == LAYER[start:end]
        assert fleet.fetched(DIGEST) == len(parts)
        assert node.counts.received == {}


async def test_blob_that_is_not_stored_comes_from_the_registry_where_the_bucket_lacks_it(fleet: SharingFleet) -> None:
    async with fleet.node("a") as node:
        assert await drained(node.stream(DIGEST, 0, len(LAYER))) == LAYER
        assert fleet.fetched(DIGEST) == 1
        assert await fleet.keys("") == [], "nothing is uploaded"


async def test_registry_sends_the_rest_when_the_bucket_breaks_off(fleet: SharingFleet) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        node.bucket.break_after = 1_500_000
        assert await drained(node.stream(DIGEST, 0, len(LAYER))) == LAYER
        assert resumed_at(fleet, 0) == 1_500_000


@pytest.mark.parametrize("break_after", [None, 1_500_000])
async def test_wrong_bytes_that_are_not_stored_are_deleted_from_the_bucket(
    fleet: SharingFleet, break_after: int | None
) -> None:
    """No reader gets all of them, whether it verifies the digest itself or not."""
    await fleet.bucket.put(KEY, b"?" + LAYER[1:])
    async with fleet.node("a") as node:
        node.bucket.break_after = break_after
        source = node.stream(DIGEST, 0, len(LAYER))
        with pytest.raises(BadUpstream, match="digest"):
            await drained(source)
        assert not source.finished
        await until(lambda: not node.shared._objects._deletions)
        assert await fleet.keys("blob") == []
        assert await drained(node.stream(DIGEST, 0, len(LAYER))) == LAYER


# -- permissions ----------------------------------------------------------------------------------------------------


async def test_registry_is_asked_where_access_is_not_known(fleet: SharingFleet) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        node.permitted = False
        fill = node.start(DIGEST)
        before = time.time()
        assert await node.pull(DIGEST) == LAYER
        assert node.checks == [None]
        assert fill.answered_at is not None
        assert before - 5 <= fill.answered_at <= time.time()
        assert fleet.fetched(DIGEST) == 0


async def test_blob_that_the_registry_refuses_is_not_served_from_the_bucket(fleet: SharingFleet) -> None:
    fleet.hub.image("team/secret", "1", [LAYER])
    await fleet.bucket.put(KEY, LAYER)
    fleet.hub.accounts.private["team/secret"] = set()
    async with fleet.node("a") as node:
        node.permitted = False
        with pytest.raises((Unauthorized, Denied)):
            async with node.shared.download(node.read(DIGEST, repository="team/secret")):
                pass
        with pytest.raises((Unauthorized, Denied)):
            async with node.shared.open(node.read(DIGEST, repository="team/secret")):
                pass
        assert node.counts.requests == {}


@pytest.mark.parametrize("permitted", [True, False])
async def test_bucket_serves_what_was_public_while_the_registry_is_down(fleet: SharingFleet, permitted: bool) -> None:
    await fleet.bucket.put(KEY, LAYER)
    async with fleet.node("a") as node:
        node.permitted, node.permitted_in_outages = False, permitted
        fleet.hub.stop("registry")
        if permitted:
            assert await node.pull(DIGEST) == LAYER
        else:
            with pytest.raises(Unavailable):
                await node.pull(DIGEST)


def client_authorization(fleet: SharingFleet) -> str:
    """Return the `Authorization` of a client that may read the repository."""
    return f"Bearer {fleet.hub.accounts.issue('alice', {REPO: frozenset({'pull'})}).value}"


async def test_private_blob_touches_neither_bucket_nor_peers(fleet: SharingFleet) -> None:
    authorization = client_authorization(fleet)
    async with fleet.nodes(2) as nodes:
        for node in nodes:
            await node.store.private.add(DIGEST)
            assert await node.pull(DIGEST, authorization) == LAYER
            async with node.shared.open(node.read(DIGEST, authorization), 0, 10) as body:
                assert b"".join([chunk async for chunk in body.chunks()]) == LAYER[:10]
        await settled(*nodes)
        assert all(node.counts.requests == {} and node.counts.received == {} for node in nodes)
    assert await fleet.keys("") == []


async def test_private_blobs_are_shared_with_the_option_after_a_check_with_the_clients_credentials(
    fleet: SharingFleet,
) -> None:
    authorization = client_authorization(fleet)
    async with fleet.nodes(2, shares_private=True) as (first, second):
        for node in (first, second):
            await node.store.private.add(DIGEST)
            assert node.permitted, "which does not count for a private read"
            assert await node.pull(DIGEST, authorization) == LAYER
            await settled(node)
            assert node.checks == [authorization]
        assert await fleet.keys("") == [keys.blob(DIGEST, private=True)]
        assert second.counts.received == {"bucket": len(LAYER)}
        assert fleet.fetched(DIGEST) == 1
    async with fleet.node("public") as node:
        assert await node.pull(DIGEST) == LAYER
        assert node.counts.received == {}, "what is private does not serve the public"


async def cancelled(node: SharingNode, fill: Fill) -> None:
    """Cancel a fill once the registry has permitted to read its blob from elsewhere.

    It has not ended when this returns: a new fill begins before, unless the test yields to the event loop.
    """
    await until(lambda: fill.digest in node.shared._shared and node.shared._shared[fill.digest].permission is not None)
    node.fills._cancel_fill(fill)


async def test_fill_for_another_repository_asks_the_registry_itself(fleet: SharingFleet) -> None:
    fleet.hub.image("team/secret", "1", [LAYER])
    fleet.hub.private("team/secret", {"alice": "alice's"})
    async with fleet.node("a") as node:
        node.permitted = False
        await hold_lease(fleet, DIGEST)
        await cancelled(node, node.start(DIGEST))
        fleet.objects.put(KEY, LAYER)
        with pytest.raises(Unauthorized):
            await node.start(DIGEST, repository="team/secret").wait_stored()
        assert node.checks == [None, None]


@pytest.mark.parametrize("first", [None, "alice"])
async def test_fill_with_other_credentials_asks_the_registry_itself(fleet: SharingFleet, first: str | None) -> None:
    """What a fill of the public, or of another client, was permitted does not count for it."""
    authorization = None if first is None else client_authorization(fleet)
    async with fleet.node("a", shares_private=True) as node:
        node.permitted = False
        fault = None
        if first is None:
            await hold_lease(fleet, DIGEST)
        else:
            fault = fleet.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=10_000))
        await cancelled(node, node.start(DIGEST, authorization))
        if fault is not None:
            fleet.hub.faults.remove(fault)
        fleet.hub.private(REPO, {"alice": "alice's"})
        fleet.objects.put(keys.blob(DIGEST, private=True), LAYER)
        with pytest.raises(Unauthorized):
            await node.start(DIGEST, "Bearer invented").wait_stored()
        assert node.checks == [authorization, "Bearer invented"]


async def test_fill_that_begins_after_a_cancelled_one_takes_over_its_lease(fleet: SharingFleet) -> None:
    fleet.hub.image("team/other", "1", [LAYER])
    async with fleet.node("a") as node:
        fault = fleet.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=10_000))
        fill = node.start(DIGEST)
        await until(lambda: fill.written > 0)
        node.fills._cancel_fill(fill)
        fleet.hub.faults.remove(fault)
        await node.start(DIGEST, repository="team/other").wait_stored()
        await settled(node)
        assert node.counts.uploads == {"stored": 1}
    assert await fleet.keys("lease") == []


# -- blobs that the policy of a node refuses ------------------------------------------------------------------------


def refuse_all(node: SharingNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a node store only what is held."""
    stage = node.store.stage

    async def stage_held(digest: Digest, size: int) -> Staged:
        if digest not in node.store.usage.held:
            raise NotStored("not stored: not requested often enough")
        return await stage(digest, size)

    monkeypatch.setattr(node.store, "stage", stage_held)


async def stream_whole(node: SharingNode) -> bytes:
    """Read the layer as a client whose fill was refused."""
    host = node.line.upstream.registry.host
    await node.store.links.put(host, REPO, {DIGEST: len(LAYER)})
    with pytest.raises(NotStored):
        await node.start(DIGEST, size=len(LAYER)).wait_opened()
    return await drained(node.stream(DIGEST, 0, len(LAYER)))


async def test_blob_that_no_node_wants_to_store_is_fetched_once(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.nodes(3) as nodes:
        for node in nodes:
            refuse_all(node, monkeypatch)
        assert await asyncio.gather(*(stream_whole(node) for node in nodes)) == [LAYER] * 3
        await settled(*nodes)
        assert fleet.fetched(DIGEST) == 1
        assert await fleet.object(KEY) == LAYER
        assert all(node.store.usage.held == {} for node in nodes), "it may be evicted now"
        late = nodes[0]
        await late.store.remove(DIGEST)
        assert await stream_whole(late) == LAYER
        assert fleet.fetched(DIGEST) == 1


async def test_refused_blobs_that_wait_for_their_upload_take_a_fourth_of_the_store(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They must not evict what clients request often while the bucket is slow."""
    layers = [random_bytes(1_000_000, f"refused {number}") for number in range(4)]
    digests = [Digest.of(layer) for layer in layers]
    fleet.hub.image(REPO, "refused", layers)
    async with fleet.node("a") as node:
        refuse_all(node, monkeypatch)
        node.store.capacity.max_bytes = 8_000_000
        gate = asyncio.Event()

        async def take(size: int) -> bool:
            return await gate.wait()

        monkeypatch.setattr(node.room, "take", take)
        await node.store.links.put(node.line.upstream.registry.host, REPO, dict.fromkeys(digests, 1_000_000))
        for digest, layer in zip(digests, layers, strict=True):
            assert await drained(node.stream(digest, 0, len(layer))) == layer
            await until(lambda: not node.fills._tasks)
        assert [*node.store.usage.held] == digests[:2]
        assert [node.store.has(digest) for digest in digests] == [True, True, False, False]
        gate.set()
        await settled(node)
        assert node.store.usage.held == {}
        assert await drained(node.stream(digests[2], 0, len(layers[2]))) == layers[2]
        await settled(node)
        assert node.store.has(digests[2])


@pytest.mark.parametrize("reason", ["size", "bucket", "damage", "slots"])
async def test_blob_is_streamed_where_it_cannot_be_held(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    async with fleet.node("a") as node:
        refuse_all(node, monkeypatch)
        match reason:
            case "size":
                node.store.capacity.max_blob = len(LAYER) - 1
            case "bucket":
                node.bucket.is_down = True
            case "damage":
                node.store.index.problems["files"] = "the disk is full"
            case "slots":
                monkeypatch.setattr(node.fills._slots, "_most", 0)
                await node.store.links.put(node.line.upstream.registry.host, REPO, {DIGEST: len(LAYER)})
        async with asyncio.timeout(5):
            streaming = stream_whole(node) if reason != "slots" else drained(node.stream(DIGEST, 0, len(LAYER)))
            assert await streaming == LAYER
        await settled(node)
        assert fleet.fetched(DIGEST) == 1
        assert not node.store.has(DIGEST)
        assert node.store.usage.held == {}


async def test_client_that_leaves_ends_the_fill_of_a_refused_blob(
    fleet: SharingFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.node("a") as node:
        refuse_all(node, monkeypatch)
        await node.store.links.put(node.line.upstream.registry.host, REPO, {DIGEST: len(LAYER)})
        fault = fleet.hub.faults.add(Fault(kind="cdn", pause_after=1_000_000, times=1))
        source = node.stream(DIGEST, 0, len(LAYER))
        assert await source.read()
        await source.close()
        node.fills.cancel_unread()
        fill = node.fills.get(DIGEST)
        if fill is not None:
            node.fills._cancel_fill(fill)
        await settled(node)
        assert node.store.usage.held == {}
        fleet.hub.faults.remove(fault)
