"""Private repositories, clients' credentials and accounts in a fleet that shares answers."""

import time
from pathlib import Path

import pytest
from hubcache.fleet import change_times, keys, membership
from hubcache.fleet.sharing import Sharing
from hubcache.fleet.values import encode_value
from hubcache.oci.account import Account
from hubcache.oci.media import normalize_accept
from hubcache.oci.registry import Registry
from hubcache.serve.messages import Answer, Listener
from obstore.store import MemoryStore
from support import fleet_engines
from support.engine import ACCEPT
from support.fleet_answers import REPO, TAG, Nodes, fleet_answer_fixtures, objects, opened, pull, report, requests
from support.standin import Fault, Hub, Image
from support.users import SECRET, bearer, turn_private

bucket, nodes, image = fleet_answer_fixtures()


async def test_private_repository_is_not_served_longer_by_another_node(hub: Hub, nodes: Nodes, image: Image) -> None:
    digest = f"/v2/{REPO}/manifests/{image.digest}"
    await pull(nodes[0])
    await pull(nodes[0], digest)
    await nodes.settle()
    nodes.advance(50)
    assert await pull(nodes[1]) == await pull(nodes[1], digest) == (200, image.manifest)
    turn_private(hub, REPO)
    nodes.advance(12)
    for cache in (nodes[2], nodes[1]):
        assert (await pull(cache))[0] == 404
        assert (await pull(cache, digest))[0] == 404


async def test_visibility_ends_an_hour_after_the_answer_and_not_after_it_was_shared(
    hub: Hub, nodes: Nodes, image: Image
) -> None:
    digest = f"/v2/{REPO}/manifests/{image.digest}"
    await pull(nodes[0], digest)
    await nodes.settle()
    turn_private(hub, REPO)
    nodes.advance(3550)
    assert await pull(nodes[1], digest) == (200, image.manifest)
    nodes.advance(60)
    for cache in nodes:
        assert (await pull(cache, digest))[0] == 404


async def test_clients_own_credentials_leave_no_answers_in_the_bucket(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = hub.image(SECRET, "1", [b"secret"])
    hub.private(SECRET, {"alice": "alice's"})
    own = bearer(hub, "alice", SECRET)
    async with fleet_engines.nodes(hub, tmp_path, 2, authorize=True) as caches:
        nodes = await opened(caches, monkeypatch)
        for cache in nodes:
            for reference in ("1", image.digest):
                path = f"/v2/{SECRET}/manifests/{reference}"
                assert await cache.get(Listener.PROXY, path, authorization=own) == (200, image.manifest)
                assert (await cache.get(Listener.MIRROR, path))[0] == 404
        await nodes.settle()
        await report(nodes[0], "1")  # a push does not write the name of the repository either
    assert not [key for prefix in ("manifest", "tag", "blob") for key in objects(bucket, prefix)]


@pytest.mark.parametrize("is_down", [False, True])
async def test_private_repository_stays_private_after_a_restart(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Image, is_down: bool
) -> None:
    """The bucket still has the answer of another node, from before this node was refused."""
    monkeypatch.setattr(membership, "HEARTBEAT_SECONDS", 3600.0)
    async with fleet_engines.node(hub, tmp_path / "0") as first:
        assert (await pull(first))[0] == 200
    async with fleet_engines.node(hub, tmp_path / "1") as second:
        assert (await pull(second))[0] == 200
        turn_private(hub, REPO)
        assert (await pull(second, f"/v2/{REPO}/manifests/other"))[0] == 404
    if is_down:
        hub.faults.add(Fault(kind="manifest", status=503))
    async with fleet_engines.node(hub, tmp_path / "1", tag_ttl=0.001 if is_down else 60.0) as second:
        for path in (TAG, f"/v2/{REPO}/manifests/{image.digest}"):
            assert (await second.get(Listener.MIRROR, path))[0] == (503 if is_down else 404)


async def test_answer_from_before_a_refusal_is_not_served_even_if_the_upstream_returns_it(
    hub: Hub, nodes: Nodes, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = f"/v2/{REPO}/manifests/{image.digest}"
    assert [(await pull(cache))[0] for cache in nodes] == [200] * 3
    await nodes.settle()
    turn_private(hub, REPO)
    nodes.advance(5)
    assert (await pull(nodes[1], f"/v2/{REPO}/manifests/other"))[0] == 404
    monkeypatch.setattr(Sharing, "is_outdated", lambda *_, **__: False)
    for method in ("HEAD", "GET"):
        for path in (digest, TAG):
            assert (await nodes[1].ask(Listener.MIRROR, method, path))[0].status == 404


async def test_challenge_in_the_bucket_does_not_reach_clients(hub: Hub, bucket: MemoryStore, tmp_path: Path) -> None:
    """Clients send passwords to the server that a challenge names."""
    hub.image(SECRET, "1", [b"secret"])
    hub.private(SECRET, {"alice": "alice's"})
    host = "registry.example.org"
    refusal = {
        "error": "UNAUTHORIZED",
        "message": "authentication required",
        "challenge": 'Bearer realm="https://evil.example.net/token",service="registry"',
        "method": "GET",
        "at": time.time(),
    }
    answers = {keys.hashed(normalize_accept(ACCEPT)): refusal}
    registries = (Registry.parse(f"{host}={hub.url()}"),)
    async with fleet_engines.node(hub, tmp_path, registries=registries) as cache:
        for method in ("HEAD", "GET"):
            bucket.put(keys.tag(host, SECRET, "1"), encode_value({"change": "", "answers": answers}))
            answer, _ = await cache.ask(Listener.PROXY, method, f"/v2/{SECRET}/manifests/1")
            assert isinstance(answer, Answer)
            assert answer.status == 401
            assert "evil" not in answer.headers["WWW-Authenticate"]


async def test_pull_counts_once_for_an_account(
    hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Image
) -> None:
    hub.user("carol", "carol's")
    account = Account("carol", "carol's")
    async with fleet_engines.nodes(hub, tmp_path, 2, account=account) as caches:
        nodes = await opened(caches, monkeypatch)
        for cache in nodes:
            assert await pull(cache) == (200, image.manifest)
            await nodes.settle()
    assert requests(hub) == (1, 1)


async def test_refused_repositories_that_a_client_invents_do_not_end_the_sharing(
    hub: Hub, nodes: Nodes, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_times, "MAX_TIMES", 5)
    await pull(nodes[0])
    await nodes.settle()
    nodes.advance(5)
    for number in range(10):
        assert (await nodes[1].get(Listener.MIRROR, f"/v2/invented/r{number}/manifests/1"))[0] == 404
    hub.reset_log()
    assert await pull(nodes[1]) == (200, image.manifest)
    assert requests(hub) == (0, 0)


async def test_refusal_of_a_blob_is_known_although_the_repository_was_never_public_here(
    hub: Hub, nodes: Nodes, image: Image
) -> None:
    await pull(nodes[0])
    await nodes.settle()
    turn_private(hub, REPO)
    blob = f"/v2/{REPO}/blobs/{image.layers[0]}"
    answer, _ = await nodes[1].ask(Listener.MIRROR, "HEAD", blob)
    assert answer.status == 404
    assert (await pull(nodes[1], f"/v2/{REPO}/manifests/{image.digest}"))[0] == 404
