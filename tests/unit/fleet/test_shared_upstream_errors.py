"""Errors of a registry that nodes share: which, for how long, and until which change."""

import time
from collections.abc import Awaitable, Callable

import pytest
from hubcache.fleet import keys
from hubcache.oci.digest import Digest
from hubcache.oci.errors import ManifestUnknown, Unauthorized
from support.shared_upstreams import (
    ACCEPT,
    HOST,
    REPO,
    SharedSetup,
    advance,
    error_of,
    get,
    head,
    manifest_requests,
    shared_upstream_fixtures,
)
from support.standin import Fault, Hub, Image
from support.users import turn_private

short_waits, nodes, image = shared_upstream_fixtures()

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
