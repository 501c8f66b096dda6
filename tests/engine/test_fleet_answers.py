"""Tags, manifests, errors and pauses in a fleet: the registry is asked once, and nothing is served for longer."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.fleet import change_times, keys, membership
from hubcache.fleet.sharing import Sharing
from hubcache.fleet.values import encode_value
from hubcache.oci.account import Account
from hubcache.oci.media import normalize_accept
from hubcache.oci.registry import Registry
from hubcache.serve.messages import Answer, Change, Listener, Result
from obstore.store import MemoryStore
from support import fleet_engines
from support.engine import ACCEPT, Cache
from support.shared_upstreams import BucketTime
from support.standin import Fault, Hub, Image
from support.tag_refresh import ask_tag, popular, tick
from support.users import SECRET, Clock, bearer, turn_private, until

HOST, REPO = "registry-1.docker.io", "library/app"
TAG = f"/v2/{REPO}/manifests/1"


class FleetClock(Clock):
    """A node's clock, which a test advances; the bucket's clock, by which the node compares times, is right."""

    def __init__(self, patch: pytest.MonkeyPatch, cache: Cache, error: float = 0.0) -> None:
        super().__init__(patch, cache)
        self.error = error
        engine: Any = cache.engine
        fleet = engine._fleet
        patch.setattr(fleet._clock, "_wall", self.time)
        patch.setattr(fleet._clock, "_monotonic", self.monotonic)
        patch.setattr(fleet._changes, "_wall_clock", self.time)
        patch.setattr(fleet._leases, "_clock", BucketTime())

    def time(self) -> float:
        return super().time() + self.error


class Nodes(list[Cache]):
    """Caches that share a bucket, and know of each other."""

    def __init__(self, caches: list[Cache], patch: pytest.MonkeyPatch) -> None:
        super().__init__(caches)
        self.clocks = [FleetClock(patch, cache) for cache in caches]

    def advance(self, seconds: float) -> None:
        for clock in self.clocks:
            clock.ahead += seconds

    async def settle(self) -> None:
        """Wait until all nodes have written their answers."""
        for cache in self:
            engine: Any = cache.engine
            await engine._fleet._answers.close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    store = MemoryStore()
    fleet_engines.use_store(monkeypatch, store)
    return store


async def opened(caches: list[Cache], patch: pytest.MonkeyPatch) -> Nodes:
    for cache in caches:
        engine: Any = cache.engine
        await engine._fleet._membership.beat()
    return Nodes(caches, patch)


@pytest.fixture
async def nodes(hub: Hub, bucket: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    monkeypatch.setattr(membership, "HEARTBEAT_SECONDS", 3600.0)
    async with fleet_engines.nodes(hub, tmp_path, 3, tag_ttl=60.0) as caches:
        yield await opened(caches, monkeypatch)


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image(REPO, "1", [b"layer"])


async def pull(cache: Cache, path: str = TAG) -> tuple[int, bytes]:
    """Request a tag as containerd does, by HEAD and GET; return status and body."""
    head, _ = await cache.ask(Listener.MIRROR, "HEAD", path)
    assert isinstance(head, Answer)
    status, body = await cache.get(Listener.MIRROR, path)
    assert status == head.status
    return status, body


def requests(hub: Hub) -> tuple[int, int]:
    """Return the numbers of HEADs and GETs of manifests that were sent with a token."""
    sent = [record for record in hub.requests(kind="manifest") if record.status != 401]
    return tuple(sum(record.method == method for record in sent) for method in ("HEAD", "GET"))  # type: ignore[return-value]


def objects(store: MemoryStore, prefix: str) -> list[str]:
    return [entry["path"] for page in store.list(prefix) for entry in page]


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


# -- pushes ------------------------------------------------------------------------------------------------------------


async def report(cache: Cache, reference: str) -> None:
    """Report a push or delete that the registry has accepted, as the plugin does."""
    await cache.engine.content_changed(cache.settings.registries[0], Change(REPO, reference))


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


# -- access ------------------------------------------------------------------------------------------------------------


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


# -- faults ------------------------------------------------------------------------------------------------------------


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
    assert objects(bucket, "lease") == []
