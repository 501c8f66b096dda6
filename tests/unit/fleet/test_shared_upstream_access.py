"""Shared answers of a registry do not outlive its permission, and requests with credentials do not use them."""

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import Unauthorized, Unavailable
from support.shared_upstreams import (
    ACCEPT,
    REPO,
    SharedSetup,
    advance,
    error_of,
    get,
    manifest_requests,
    shared_upstream_fixtures,
)
from support.standin import Fault, Hub, Image
from support.users import turn_private

short_waits, nodes, image = shared_upstream_fixtures()


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
