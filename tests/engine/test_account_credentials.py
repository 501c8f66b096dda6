"""Content that was fetched with credentials is served to the public only if anonymous clients may read it at that
moment."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.account import Account
from hubcache.oci.digest import Digest
from hubcache.oci.errors import HubcacheError
from hubcache.serve.messages import Answer, Forward, Listener
from hubcache.serve.repository_view import RepositoryView
from hubcache.transfer import fills
from support.engine import Cache, read, running
from support.standin import Fault, Hub, Image, random_bytes
from support.users import EACH_LISTENER, REFUSED, Clock, bearer, pull, settled, turn_private, until

REPO = "alice/app"
LAYER = random_bytes(200_000, "layer")
HOST = "registry-1.docker.io"


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch, short_times: None) -> None:
    monkeypatch.setattr(fills, "_BACKOFF_SECONDS", 0.01)


@asynccontextmanager
async def with_account(hub: Hub, directory: Path, **changes: Any) -> AsyncIterator[Cache]:
    """The configured account may read everything that alice may read."""
    hub.user("robot", "robot's")
    async with running(hub, directory, account=Account("robot", "robot's"), **changes) as started:
        yield started


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with with_account(hub, tmp_path / "store") as started:
        yield started


@pytest.fixture
async def app(cache: Cache, hub: Hub) -> Image:
    """A public image whose manifests are stored, but not its layer. It has turned private, which the cache has not
    noticed yet."""
    image = hub.image(REPO, "1", [LAYER])
    index = hub.index(REPO, "multi", {"linux/amd64": image})
    for reference in ("1", index.digest):
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{reference}"))[0] == 200
    turn_private(hub, REPO, robot="robot's")
    hub.reset_log()
    return image


async def body_of(outcome: Answer | Forward) -> bytes:
    try:
        return await read(outcome)
    except HubcacheError:
        return b""


def fetched_with(hub: Hub) -> set[str]:
    """The users whose credentials fetched something."""
    return {record.user for status in (200, 206, 307) for record in hub.requests(method="GET", status=status)
            if record.kind in ("manifest", "blob")}  # fmt: skip


async def is_stored_for(cache: Cache, image: Image) -> bool:
    await settled(cache)
    return cache.engine.store.has(Digest.parse(image.layers[0]))


@EACH_LISTENER
@pytest.mark.parametrize(
    ("method", "headers"), [("GET", {}), ("GET", {"range": "bytes=1000-1999"}), ("HEAD", {})], ids=str
)
async def test_layer_of_a_repository_that_turned_private_is_not_fetched_with_the_account(
    cache: Cache, hub: Hub, app: Image, listener: Listener, method: str, headers: dict[str, str]
) -> None:
    """It is not fetched even within the lifetime of the repository's visibility."""
    path = f"/v2/{REPO}/blobs/{app.layers[0]}"
    for _ in range(2):
        answer, body = await cache.ask(listener, method, path, **headers)
        assert isinstance(answer, Answer)
        assert (answer.status, LAYER[1000:1999] in body) == (REFUSED[listener], False)
    assert fetched_with(hub) == set()
    assert not await is_stored_for(cache, app)


@EACH_LISTENER
@pytest.mark.parametrize("age", [0.0, 7200.0], ids=["while the visibility is fresh", "after that"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="[mb]*", method="HEAD", status=429, body="no"),
        Fault(kind="[mb]*", method="HEAD", status=500),
        Fault(kind="[mb]*", method="HEAD", delay=30.0),
        Fault(kind="[mb]*", method="HEAD", reset=True),
    ],
    ids=["429", "500", "slow", "reset"],
)
async def test_account_does_not_replace_the_anonymous_check(
    cache: Cache, hub: Hub, app: Image, listener: Listener, fault: Fault, age: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch, cache).ahead = age
    other = hub.image(REPO, "2", [b"another"])
    hub.faults.add(fault)
    paths = [f"blobs/{app.layers[0]}", f"manifests/{other.digest}", "manifests/2"]
    for path in paths:
        outcome, body = await cache.ask(listener, "GET", f"/v2/{REPO}/{path}")
        assert isinstance(outcome, Answer)
        assert outcome.status in (401, 404, 429, 503)
        assert body[:1] == b"{"
        assert other.manifest not in body
    assert fetched_with(hub) == set()
    assert not await is_stored_for(cache, app)


async def test_users_token_does_not_publish_a_layer_of_a_repository_that_turned_private(
    cache: Cache, hub: Hub, app: Image
) -> None:
    path = f"/v2/{REPO}/blobs/{app.layers[0]}"
    for _ in range(2):
        outcome, _ = await cache.ask(Listener.PROXY, "GET", path, authorization=bearer(hub, "alice", REPO))
        assert isinstance(outcome, Forward), "with its own credentials, and not stored"
        for listener in Listener:
            assert (await cache.get(listener, path))[0] == REFUSED[listener]
    assert not await is_stored_for(cache, app)


@EACH_LISTENER
async def test_interrupted_download_is_not_resumed_with_the_account(cache: Cache, hub: Hub, listener: Listener) -> None:
    image = hub.image(REPO, "1", [LAYER])
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=50_000, close_after=100_000, times=1))
    path = f"/v2/{REPO}/blobs/{image.layers[0]}"
    outcome = await cache.engine.service.answer(cache.request(listener, "GET", path))
    assert isinstance(outcome, Answer)
    await until(lambda: fault.hits)
    turn_private(hub, REPO, robot="robot's")
    hub.reset_log()
    hub.faults.remove(fault)
    assert await body_of(outcome) == b""
    assert fetched_with(hub) == set()
    assert not await is_stored_for(cache, image)


@EACH_LISTENER
async def test_range_ahead_of_a_fill_is_not_fetched_with_the_account(
    cache: Cache, hub: Hub, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository turns private while a fill of the layer is running."""
    monkeypatch.setattr("hubcache.serve.cached_blobs.FAR_AHEAD", 1000)
    image = hub.image(REPO, "1", [LAYER])
    assert (await cache.get(listener, f"/v2/{REPO}/manifests/1"))[0] == 200
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=10_000, close_after=20_000, times=1))
    path = f"/v2/{REPO}/blobs/{image.layers[0]}"
    filling = await cache.engine.service.answer(cache.request(listener, "GET", path))
    await until(lambda: fault.hits)
    turn_private(hub, REPO, robot="robot's")
    hub.reset_log()
    part = await cache.engine.service.answer(cache.request(listener, "GET", path, range="bytes=150000-"))
    reading = asyncio.create_task(body_of(part))
    await until(lambda: hub.requests(kind="blob"))
    hub.faults.remove(fault)
    assert await reading == b""
    assert fetched_with(hub) == set()
    await body_of(filling)


@EACH_LISTENER
async def test_download_that_bypasses_the_store_does_not_use_the_account(
    hub: Hub, listener: Listener, tmp_path: Path
) -> None:
    """The store cannot be used; the size is known from an earlier HEAD, or not at all."""
    (tmp_path / "store").touch()
    image = hub.image(REPO, "1", [LAYER])
    async with with_account(hub, tmp_path / "store") as cache:
        path = f"/v2/{REPO}/blobs/{image.layers[0]}"
        assert await cache.get(listener, path) == (200, LAYER)
        assert "robot" in fetched_with(hub), "while anybody may"
        turn_private(hub, REPO, robot="robot's")
        hub.reset_log()
        for headers in ({}, {"range": "bytes=0-99"}):
            assert (await cache.get(listener, path, **headers))[0] == REFUSED[listener]
        assert fetched_with(hub) == set()


async def test_prefetch_does_not_use_the_account_for_a_repository_that_turned_private(
    cache: Cache, hub: Hub, app: Image
) -> None:
    view = RepositoryView(cache.engine.service._upstreams[HOST], REPO)
    new = hub.image(REPO, "2", [b"another"])
    for work in (
        cache.engine._blobs.fetch(view, Digest.parse(app.layers[0])),
        cache.engine._manifests.by_digest(view, Digest.parse(new.digest), head=False),
        cache.engine._validation.validate(view, "2", "*/*", head=False),
    ):
        with pytest.raises(HubcacheError):
            await work
    assert fetched_with(hub) == set()


@EACH_LISTENER
async def test_account_reads_nothing_private_after_a_restart(hub: Hub, listener: Listener, tmp_path: Path) -> None:
    image = hub.image(REPO, "1", [LAYER])
    async with with_account(hub, tmp_path / "store") as before:
        assert (await before.get(listener, f"/v2/{REPO}/manifests/1"))[0] == 200
    turn_private(hub, REPO, robot="robot's")
    hub.reset_log()
    async with with_account(hub, tmp_path / "store") as after:
        assert (await after.get(listener, f"/v2/{REPO}/blobs/{image.layers[0]}"))[0] == REFUSED[listener]
        assert fetched_with(hub) == set()


@EACH_LISTENER
async def test_missing_blob_costs_one_more_head_only_with_an_account(
    cache: Cache, hub: Hub, listener: Listener, tmp_path: Path
) -> None:
    image = hub.image(REPO, "1", [LAYER])
    path = f"/v2/{REPO}/blobs/{image.layers[0]}"
    assert await cache.get(listener, path) == (200, LAYER)
    assert hub.count(kind="blob", method="HEAD", status=307) == 1
    assert fetched_with(hub) == {"robot"}
    async with running(hub, tmp_path / "without") as without:
        hub.reset_log()
        assert await without.get(listener, path) == (200, LAYER)
        assert hub.count(kind="blob", method="HEAD") == 0
        assert fetched_with(hub) == {""}


# -- content that is missing for some clients --------------------------------------------------------------------------


def hidden_from(hub: Hub, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry answers 404 to this `Authorization`, as some do where others answer 401."""
    answer = hub._registry.answer

    async def selective(request: Any, record: Any, name: str) -> Any:
        if request.headers.get("Authorization") == token and record.kind in ("manifest", "blob"):
            request = request.clone(rel_url=f"/v2/{record.repo}/{record.kind}s/none")
            name = "none"
        return await answer(request, record, name)

    monkeypatch.setattr(hub._registry, "answer", selective)


@pytest.mark.parametrize("part", ["tag", "digest", "layer"])
async def test_404_for_a_clients_token_is_not_remembered(
    hub: Hub, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = hub.image(REPO, "1", [LAYER])
    own = bearer(hub, "bob", REPO)
    hidden_from(hub, own, monkeypatch)
    path, wanted = {
        "tag": ("manifests/1", image.manifest),
        "digest": (f"manifests/{image.digest}", image.manifest),
        "layer": (f"blobs/{image.layers[0]}", LAYER),
    }[part]
    async with running(hub, tmp_path / "store") as cache:
        outcome, body = await cache.ask(Listener.PROXY, "GET", f"/v2/{REPO}/{path}", authorization=own)
        assert isinstance(outcome, Answer)
        assert (outcome.status, body) == (200, wanted)
        for listener in Listener:
            assert await cache.get(listener, f"/v2/{REPO}/{path}") == (200, wanted)


async def test_404_for_a_user_does_not_drop_the_public_tag(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `hubcache_private=authorize`, a user's credentials are tried where an anonymous request was refused a moment
    ago."""
    image = hub.image(REPO, "1", [LAYER])
    own = bearer(hub, "bob", REPO)
    async with running(hub, tmp_path / "store", authorize=True) as cache:
        assert set(await pull(cache, image)) == {200}
        hidden_from(hub, own, monkeypatch)
        view = RepositoryView(cache.engine.service._upstreams[HOST], REPO, authorization=own)
        (negotiation,) = cache.engine.store.tags.get(HOST, REPO, "1")
        with pytest.raises(HubcacheError):
            await cache.engine._validation.validate(view, "1", negotiation, head=False)
        with pytest.raises(HubcacheError):
            await cache.engine._blobs._blob_access.ask(view, Digest.parse(image.layers[0]))
        assert cache.engine.store.tags.get(HOST, REPO, "1")
        hub.stop()
        assert set(await pull(cache, image)) == {200}


async def test_concurrent_clients_get_only_public_content_while_a_repository_turns_private(
    cache: Cache, hub: Hub
) -> None:
    """Content that was pushed after the change is neither served nor stored, in whatever order the clients come."""
    for number in range(10):
        repo = f"alice/race{number}"
        assert set(await pull(cache, hub.image(repo, "1", [b"public"]))) == {200}
        turn_private(hub, repo, robot="robot's")
        new = hub.image(repo, "2", [random_bytes(1000, number)])
        hub.reset_log()
        paths = ("manifests/2", f"manifests/{new.digest}", f"blobs/{new.layers[0]}") * 4
        tokens = [{}, {"authorization": bearer(hub, "alice", repo)}] * 6
        await asyncio.gather(
            *(cache.ask(Listener.PROXY, "GET", f"/v2/{repo}/{path}", **own)
              for path, own in zip(paths, tokens, strict=True))
        )  # fmt: skip
        assert fetched_with(hub) == set()
        assert not await is_stored_for(cache, new)
