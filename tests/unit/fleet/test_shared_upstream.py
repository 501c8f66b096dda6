"""Answers of a registry, shared by nodes: one request for the fleet, and no answer that lives longer than alone."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hubcache.fleet import bucket, keys, shared_answers
from hubcache.fleet.answer_records import ErrorAnswer, ManifestAnswer, TagAnswer, write_manifest, write_tag
from hubcache.fleet.bucket import BucketUnavailable
from hubcache.fleet.leases import Lease
from hubcache.fleet.values import encode_value
from hubcache.oci.digest import Digest
from hubcache.oci.errors import ManifestUnknown, RegistryError, TooManyRequests, Unauthorized, Unavailable
from hubcache.oci.media import COMMON_TYPES
from hubcache.transfer import upstream as upstream_module
from support.shared_upstreams import SharedSetup, shared_upstream, shared_upstreams
from support.standin import Fault, Hub, Image
from support.users import turn_private, until

HOST, REPO, ACCEPT = "registry-1.docker.io", "library/app", ", ".join(COMMON_TYPES)
TAG = keys.tag(HOST, REPO, "1")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "_BACKOFF_SECONDS", 0.01)


@pytest.fixture
async def nodes(hub: Hub) -> AsyncIterator[list[SharedSetup]]:
    async with shared_upstreams(hub, 2) as opened:
        yield opened


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image(REPO, "1", [b"layer"])


async def get(node: SharedSetup, reference: str | Digest = "1", accept: str = ACCEPT) -> bytes:
    return (await node.upstream.get_manifest(REPO, reference, accept)).body


async def head(node: SharedSetup, reference: str | Digest = "1", accept: str = ACCEPT) -> Digest | None:
    return (await node.upstream.head_manifest(REPO, reference, accept)).digest


def advance(nodes: list[SharedSetup], seconds: float) -> None:
    for node in nodes:
        node.clock.ahead += seconds


def manifest_requests(hub: Hub) -> dict[str, int]:
    """Return the number of requests by method, without those that were sent before the node had a token."""
    return {
        method: hub.count(kind="manifest", method=method) - hub.count(kind="manifest", method=method, status=401)
        for method in ("HEAD", "GET")
    }


async def error_of(request: Awaitable[object]) -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        await request
    return caught.value


# -- one request -------------------------------------------------------------------------------------------------------


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


# -- lifetimes ---------------------------------------------------------------------------------------------------------


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


async def test_public_bytes_that_an_account_fetched_are_shared_but_show_no_access(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    """Each node that has an account would else count a pull of its own."""
    first, second = nodes
    digest = Digest.parse(image.digest)
    account = await first.line.upstream.anonymous_authorization(REPO)
    assert (await first.upstream.get_manifest(REPO, digest, ACCEPT, account, is_public=True)).body == image.manifest
    await first.settle()
    assert (await second.upstream.get_manifest(REPO, digest, ACCEPT, account, is_public=True)).body == image.manifest
    assert manifest_requests(hub) == {"HEAD": 0, "GET": 1}
    assert await get(second, digest) == image.manifest
    assert manifest_requests(hub) == {"HEAD": 1, "GET": 1}


# -- errors ------------------------------------------------------------------------------------------------------------


MISSING = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no"}]}


@pytest.mark.parametrize("request_it", [get, head])
async def test_missing_tag_is_shared_for_the_lifetime_of_errors(
    hub: Hub, nodes: list[SharedSetup], request_it: Callable[[SharedSetup], Awaitable[object]]
) -> None:
    hub.faults.add(Fault(kind="manifest", status=404, body=MISSING))
    first, second = nodes
    asked = await error_of(get(first))
    await first.settle()
    count = hub.count(kind="manifest")
    advance(nodes, 20)
    shared = await error_of(request_it(second))
    assert type(asked) is type(shared) is ManifestUnknown
    assert (shared.message, shared.detail, shared.headers()) == (asked.message, asked.detail, asked.headers())
    assert shared.answered_at == pytest.approx(second.clock.wall() - 20, abs=2.0)
    assert hub.count(kind="manifest") == count
    advance(nodes, 12)
    await error_of(request_it(second))
    assert hub.count(kind="manifest") > count


async def test_error_of_a_head_is_no_answer_to_a_get(hub: Hub, nodes: list[SharedSetup]) -> None:
    hub.faults.add(Fault(kind="manifest", status=404, body=MISSING))
    await error_of(head(nodes[0]))
    await nodes[0].settle()
    error = await error_of(get(nodes[1]))
    assert isinstance(error.detail, dict)
    assert error.detail["upstream_code"] == "MANIFEST_UNKNOWN"
    await nodes[1].settle()
    assert await error_of(head(nodes[0]))
    assert manifest_requests(hub) == {"HEAD": 1, "GET": 1}


async def test_errors_are_not_shared_without_a_lifetime(hub: Hub, nodes: list[SharedSetup]) -> None:
    hub.faults.add(Fault(kind="manifest", status=404))
    for node in nodes:
        node.sharing.lifetimes.error = 0.0
        await error_of(get(node))
        await node.settle()
    assert sum(manifest_requests(hub).values()) == 2


async def test_error_ends_with_a_push_of_another_name(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    digest = Digest.of(b"pushed by its tag")
    await error_of(get(first, digest))
    await first.settle()
    second.sharing.record_change(HOST, REPO, "2", second.clock.wall() + 1)
    hub.reset_log()
    await error_of(get(second, digest))
    assert sum(manifest_requests(hub).values()) == 1


async def test_error_may_be_older_than_a_push_by_what_clocks_may_be_wrong(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    first, second = nodes
    await error_of(get(first, "2"))
    await first.settle()
    pushed = hub.image(REPO, "2", [b"pushed"])
    second.sharing.record_change(HOST, REPO, "3", second.clock.wall() - 1.0)
    assert await get(second, "2") == pushed.manifest


async def test_names_that_clients_invent_cost_few_requests_to_the_bucket(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    """Beyond ten a second on average, each is one read, and leaves no object."""
    first, second = nodes
    first.sharing.failures.change(0.001, time.monotonic())  # one is saved up
    fault = hub.faults.add(Fault(kind="manifest", status=404, body=MISSING))
    for number in range(3):
        for reference in (f"invented-{number}", Digest.of(b"%d" % number)):
            await error_of(get(first, reference))
            await first.settle()
    assert (first.seen.count("put"), first.seen.count("delete")) == (2, 1)  # a lease and an answer
    assert [entry.key async for entry in first.bucket.list("tag")] == [keys.tag(HOST, REPO, "invented-0")]
    hub.faults.remove(fault)
    await get(second)
    await second.settle()
    first.seen.events.clear()
    advance(nodes, 601)
    assert await get(first) == image.manifest
    await first.settle()
    assert (first.seen.count("put"), first.seen.count("delete")) == (2, 1)  # content that has an object has a lease


@pytest.mark.parametrize("request_it", [get, head])
async def test_answers_for_a_long_accept_are_not_shared(
    hub: Hub, nodes: list[SharedSetup], image: Image, request_it: Callable[..., Awaitable[object]]
) -> None:
    accept = f"{ACCEPT}, application/{'x' * 60}"
    for node in nodes:
        await request_it(node, accept=accept)
        await node.settle()
    assert sum(manifest_requests(hub).values()) == 2
    assert not nodes[0].seen.events
    turn_private(hub, REPO)
    assert isinstance(await error_of(request_it(nodes[0], accept=accept)), Unauthorized)
    assert nodes[0].sharing.is_outdated(nodes[0].clock.wall() - 1, HOST, REPO)


NOT_SHARED = {
    "refused": (Fault(kind="manifest", status=401, body=MISSING), "1", True),
    "denied": (Fault(kind="manifest", status=403, body=MISSING), "1", True),
    "hidden": (Fault(kind="manifest", status=404, body={"errors": [{"code": "NAME_UNKNOWN"}]}), "1", True),
    "without code": (Fault(kind="manifest", status=404, body={}), "1", True),
    "by digest": (Fault(kind="manifest", status=404, body=MISSING), Digest.of(b"missing"), True),
    "never public": (Fault(kind="manifest", status=404, body=MISSING), "1", False),
}


@pytest.mark.parametrize("request_it", [get, head])
@pytest.mark.parametrize(("fault", "reference", "was_public"), NOT_SHARED.values(), ids=NOT_SHARED)
async def test_error_that_may_be_about_a_private_repository_leaves_no_object(
    hub: Hub,
    nodes: list[SharedSetup],
    request_it: Callable[[SharedSetup, str | Digest], Awaitable[object]],
    fault: Fault,
    reference: str | Digest,
    was_public: bool,
) -> None:
    hub.faults.add(fault)
    first, second = nodes
    if not was_public:
        first.visibility[REPO] = None
    await error_of(request_it(first, reference))
    await first.settle()
    assert [entry.key async for entry in first.bucket.list("") if not entry.key.startswith("node/")] == []
    count = hub.count(kind="manifest")
    await error_of(request_it(second, reference))
    assert hub.count(kind="manifest") > count


@pytest.mark.parametrize("by_digest", [False, True])
async def test_refusal_drops_the_answers_of_other_nodes(
    hub: Hub, nodes: list[SharedSetup], image: Image, by_digest: bool
) -> None:
    """Else they could be served as stale ones when the registry fails."""
    first, second = nodes
    reference = Digest.parse(image.digest) if by_digest else "1"
    await get(first, reference)
    await first.settle()
    advance(nodes, 3700)
    turn_private(hub, REPO)
    assert isinstance(await error_of(get(second, reference)), Unauthorized)
    await second.settle()
    hub.faults.add(Fault(kind="manifest", status=503))
    assert isinstance(await error_of(get(first, reference)), Unavailable)


async def test_refusals_in_the_bucket_are_ignored(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    """Who writes them could choose the server to which clients send their passwords."""
    for code, method in (("UNAUTHORIZED", "GET"), ("DENIED", "HEAD")):
        refusal = {
            "error": code,
            "message": "no",
            "challenge": 'Bearer realm="https://evil.example/"',
            "at": time.time(),
        }
        answers = {keys.hashed(ACCEPT): {**refusal, "method": method, "upstream_code": "MANIFEST_UNKNOWN"}}
        await nodes[0].bucket.put(TAG, encode_value({"answers": answers}))
        assert await get(nodes[0]) == image.manifest
        await nodes[0].settle()


async def test_media_type_that_is_no_header_value_is_ignored(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    digest = Digest.parse(image.digest)
    tag = write_tag(TagAnswer(digest, "\u65e5", len(image.manifest), time.time()), "x")
    await nodes[0].bucket.put(TAG, encode_value({"answers": {keys.hashed(ACCEPT): tag}}))
    manifest = write_manifest(ManifestAnswer("\u65e5", image.manifest, time.time()), "x")
    await nodes[0].bucket.put(keys.manifest(HOST, REPO, digest), encode_value(manifest))
    for reference in ("1", digest):
        described = await nodes[0].upstream.head_manifest(REPO, reference, ACCEPT)
        assert described.media_type == image.media_type


# -- changes -----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("is_error", [False, True])
async def test_answer_from_the_future_is_replaced(
    hub: Hub, nodes: list[SharedSetup], image: Image, is_error: bool
) -> None:
    first, second = nodes
    digest, at = Digest.parse(image.digest), time.time() + 1e6
    missing = ErrorAnswer(ManifestUnknown("no", {"upstream_code": "MANIFEST_UNKNOWN"}), at)
    tag = write_tag(missing if is_error else TagAnswer(Digest.of(b"old"), image.media_type, 3, at), "x")
    future = {f"x{number}": tag for number in range(20)}
    await first.bucket.put(TAG, encode_value({"answers": {keys.hashed(ACCEPT): tag, **future}}))
    manifest = write_manifest(ManifestAnswer(image.media_type, image.manifest, at), "x")
    await first.bucket.put(keys.manifest(HOST, REPO, digest), encode_value(manifest))
    assert await get(first) == await get(first, digest) == image.manifest
    await first.settle()
    hub.reset_log()
    assert await get(second) == await get(second, digest) == image.manifest
    assert not any(manifest_requests(hub).values())


# -- access ------------------------------------------------------------------------------------------------------------


async def test_refusal_ends_the_use_of_earlier_answers(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    """A repository became private: this node has seen it by another tag."""
    first, second = nodes
    hub.image(REPO, "2", [b"other"])
    await get(first)
    await first.settle()
    turn_private(hub, REPO)
    advance(nodes, 5)
    await error_of(get(second, "2"))
    advance(nodes, 5)
    for reference in ("1", Digest.parse(image.digest)):
        assert isinstance(await error_of(get(second, reference)), Unauthorized)


async def test_refusal_of_a_blob_ends_the_use_of_earlier_answers(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    first, second = nodes
    await get(first)
    await first.settle()
    turn_private(hub, REPO)
    advance(nodes, 5)
    with pytest.raises(Unauthorized):
        async with second.upstream.open_blob(REPO, Digest.parse(image.layers[0])):
            pass
    advance(nodes, 5)
    assert isinstance(await error_of(get(second)), Unauthorized)


async def test_private_repository_is_closed_when_a_shared_answer_expires(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    await get(nodes[0])
    await nodes[0].settle()
    turn_private(hub, REPO)
    assert await get(nodes[1]) == image.manifest  # as one machine alone would within the tag's lifetime
    advance(nodes, 3600)
    for reference in ("1", Digest.parse(image.digest)):
        assert isinstance(await error_of(get(nodes[1], reference)), Unauthorized)


async def test_reads_with_credentials_leave_the_bucket_alone(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    await get(first)
    await first.settle()
    own = await second.line.upstream.anonymous_authorization(REPO)
    hub.reset_log()
    for reference in ("1", Digest.parse(image.digest)):
        await second.upstream.head_manifest(REPO, reference, ACCEPT, own)
        await second.upstream.get_manifest(REPO, reference, ACCEPT, own)
    await second.settle()
    assert manifest_requests(hub) == {"HEAD": 2, "GET": 2}
    assert not second.seen.events


# -- outages -----------------------------------------------------------------------------------------------------------


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


# -- what others wrote -------------------------------------------------------------------------------------------------


async def test_object_that_cannot_be_read_is_ignored_and_replaced(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    first, second = nodes
    digest = Digest.parse(image.digest)
    for value in (b"", b"[]", b"\xff", b'{"format": 2, "answers": 5}', b'{"format": 1, "answers": []}', b"[" * 5000):
        for key in (TAG, keys.manifest(HOST, REPO, digest)):
            await first.bucket.put(key, value)
        assert await get(first) == image.manifest
        await first.settle()
        hub.reset_log()
        assert await get(second) == await get(second, digest) == image.manifest
        assert not any(manifest_requests(hub).values()), value


async def test_field_that_is_invalid_voids_the_answer(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    await head(first)
    await first.settle()
    stored = await first.bucket.get(TAG)
    assert stored is not None
    invalid: list[tuple[str, object]] = [
        *(("digest", "sha256:1"), ("digest", 5), ("media_type", None), ("media_type", "a\r\nb: c"), ("size", -1)),
        *(("size", 1e300), ("size", "5"), ("at", None), ("at", "now"), ("at", 10**400), ("at", True), ("at", 1e999)),
    ]
    for name, value in invalid:
        document = json.loads(stored.value)
        for answer in document["answers"].values():
            answer[name] = value
        await first.bucket.put(TAG, json.dumps(document).encode())
        hub.reset_log()
        assert await head(second) == image.digest
        assert manifest_requests(hub) == {"HEAD": 1, "GET": 0}, (name, value)
        await second.settle()


async def test_answer_from_the_future_is_ignored(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    advance(nodes[:1], 3600)
    await head(nodes[0])
    await nodes[0].settle()
    await head(nodes[1])
    assert manifest_requests(hub) == {"HEAD": 2, "GET": 0}


async def test_bytes_that_do_not_match_the_digest_are_ignored_and_replaced(
    hub: Hub, nodes: list[SharedSetup], image: Image
) -> None:
    first, second = nodes
    digest, other = Digest.parse(image.digest), hub.image(REPO, "2", [b"other"])
    await get(first, Digest.parse(other.digest))
    await get(first)
    await first.settle()
    wrong = await first.bucket.get(keys.manifest(HOST, REPO, Digest.parse(other.digest)))
    assert wrong is not None
    await first.bucket.put(keys.manifest(HOST, REPO, digest), wrong.value)
    hub.reset_log()
    assert await get(second) == image.manifest
    await second.settle()
    assert await get(first) == await get(first, digest) == image.manifest
    assert manifest_requests(hub) == {"HEAD": 0, "GET": 1}


async def test_unknown_fields_are_ignored(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    first, second = nodes
    await get(first)
    await first.settle()
    for key in (TAG, keys.manifest(HOST, REPO, Digest.parse(image.digest))):
        stored = await first.bucket.get(key)
        assert stored is not None
        await first.bucket.put(key, json.dumps({**json.loads(stored.value), "new": {"field": 1}}).encode())
    assert await get(second) == image.manifest
    assert manifest_requests(hub) == {"HEAD": 0, "GET": 1}


async def test_leases_are_released(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    await asyncio.gather(*(get(node) for node in nodes), *(head(node) for node in nodes))
    for node in nodes:
        await node.settle()
    assert [entry.key async for entry in nodes[0].bucket.list("lease")] == []


async def test_tag_object_keeps_a_bounded_number_of_answers(hub: Hub, nodes: list[SharedSetup], image: Image) -> None:
    for number in range(40):
        await nodes[0].upstream.head_manifest(REPO, "1", f"{image.media_type}, text/x{number}")
        await nodes[0].settle()
        advance(nodes, 1)
    stored = await nodes[0].bucket.get(TAG)
    assert stored is not None
    assert len(json.loads(stored.value)["answers"]) == 16
    hub.reset_log()
    await nodes[1].upstream.head_manifest(REPO, "1", f"{image.media_type}, text/x39")
    assert not any(manifest_requests(hub).values())


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
