"""Shared blobs are served only to clients that the registry permits to read them."""

import time

import pytest
from hubcache.fleet import keys
from hubcache.oci.errors import Denied, Unauthorized, Unavailable
from hubcache.transfer.fill import Fill
from support.fleet_nodes import REPO, SharingFleet, SharingNode, settled
from support.shared_layers import DIGEST, KEY, LAYER, hold_lease, sharing_fleet_fixture
from support.standin import Fault
from support.users import until

fleet = sharing_fleet_fixture()


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
