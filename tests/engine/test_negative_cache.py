"""Error answers are remembered for a short time, so that a mistyped name in a fleet does not flood the registry."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.serve.messages import Answer, Change, Forward, Listener
from support.engine import Cache, running
from support.standin import Fault, Hub
from support.standin.media import OCI_MANIFEST
from support.users import EACH_LISTENER, Clock, bearer, until

TTL = 30.0
MISSING = "sha256:" + "0" * 64
PATHS = ("library/app/manifests/latets", f"library/app/manifests/{MISSING}", f"library/app/blobs/{MISSING}")


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    hub.image("library/app", "1")
    hub.image("alice/secret", "1")
    hub.private("alice/secret", {"alice": "alice's"})
    async with running(hub, tmp_path / "store", negative_ttl=TTL) as started:
        yield started


def upstream_requests(hub: Hub, path: str) -> int:
    """Count the requests upstream for a path that had a token. The first request, without a token, only gets a
    challenge."""
    return hub.count(path=f"/v2/{path}*", token="valid")


@EACH_LISTENER
@pytest.mark.parametrize(("path", "count"), list(zip(PATHS, (1, 1, 2), strict=True)), ids=["tag", "digest", "blob"])
async def test_many_requests_for_missing_content_are_one_request_upstream(
    cache: Cache, hub: Hub, listener: Listener, path: str, count: int
) -> None:
    """A missing blob costs two: for clients that arrive during the fetch, a HEAD checks whether they may read it."""
    at_once = await asyncio.gather(*(cache.get(listener, f"/v2/{path}") for _ in range(25)))
    later = [await cache.get(listener, f"/v2/{path}") for _ in range(25)]
    assert {status for status, _ in at_once + later} == {404}
    assert upstream_requests(hub, path) <= count


@EACH_LISTENER
@pytest.mark.parametrize("path", PATHS, ids=["tag", "digest", "blob"])
async def test_head_and_get_share_a_remembered_error(cache: Cache, hub: Hub, listener: Listener, path: str) -> None:
    """docker clients send a GET after a failed HEAD of a manifest."""
    for method in ("HEAD", "GET") * 5:
        answer, _ = await cache.ask(listener, method, f"/v2/{path}")
        assert isinstance(answer, Answer)
        assert answer.status == 404
    assert upstream_requests(hub, path) == 1


@EACH_LISTENER
async def test_refusal_of_anonymous_clients_is_remembered(cache: Cache, hub: Hub, listener: Listener) -> None:
    for _ in range(50):
        assert (await cache.get(listener, "/v2/alice/secret/manifests/1"))[0] == (
            401 if listener is Listener.PROXY else 404
        )
    assert upstream_requests(hub, "alice/secret/manifests/1") == 1


@EACH_LISTENER
async def test_upstream_is_asked_again_after_the_lifetime(
    cache: Cache, hub: Hub, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    for ahead, count in ((0, 1), (TTL - 1, 1), (TTL + 1, 2), (TTL * 2, 2)):
        clock.ahead = ahead
        assert (await cache.get(listener, "/v2/library/app/manifests/new"))[0] == 404
        assert upstream_requests(hub, "library/app/manifests/new") == count
    image = hub.image("library/app", "new", [b"new"])
    clock.ahead = TTL * 2 + 5
    assert await cache.get(listener, "/v2/library/app/manifests/new") == (200, image.manifest)


@EACH_LISTENER
@pytest.mark.parametrize("path", PATHS, ids=["tag", "digest", "blob"])
@pytest.mark.parametrize("status", [404, 401, 403])
async def test_use_of_a_remembered_error_does_not_extend_its_lifetime(
    cache: Cache, hub: Hub, listener: Listener, path: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a client that repeats its request would never find content that exists by now."""
    clock = Clock(monkeypatch, cache)
    fault = hub.faults.add(Fault(kind="[mb]*", status=status, body={"errors": []}))
    refused = status if listener is Listener.PROXY else 404
    for clock.ahead in range(0, int(TTL), 7):
        for method in ("GET", "HEAD"):
            answer, _ = await cache.ask(listener, method, f"/v2/{path}")
            assert isinstance(answer, Answer)
            assert answer.status == refused
    hub.faults.remove(fault)
    hub.image("library/app", "latets", [b"there"])
    held = hub.memory.repository("library/app")
    held.blobs[MISSING] = next(iter(held.blobs.values()))
    clock.ahead = TTL + 2
    seen = hub.count(path=f"/v2/{path}*")
    await cache.ask(listener, "HEAD", f"/v2/{path}")
    assert hub.count(path=f"/v2/{path}*") > seen, "requested again"


async def test_error_that_arrives_after_a_push_is_not_remembered(cache: Cache, hub: Hub) -> None:
    """The error is older than the push."""
    for path in PATHS:
        fault = hub.faults.add(Fault(kind="[mb]*", path=f"/v2/{path}*", delay=0.3, times=1))
        asking = asyncio.create_task(cache.get(Listener.PROXY, f"/v2/{path}"))
        await until(lambda: fault.hits)  # noqa: B023 - waited for in the same turn
        moved = Change("library/app", path.rpartition("/")[2], is_blob="/blobs/" in path)
        await cache.engine.content_changed(cache.settings.registries[0], moved)
        assert (await asking)[0] == 404
        seen = upstream_requests(hub, path)
        await cache.get(Listener.PROXY, f"/v2/{path}")
        assert upstream_requests(hub, path) == seen + 1


async def test_negative_ttl_0_remembers_nothing(cache: Cache, hub: Hub) -> None:
    cache.apply(negative_ttl=0.0)
    for _ in range(3):
        await cache.get(Listener.PROXY, "/v2/library/app/manifests/new")
    assert upstream_requests(hub, "library/app/manifests/new") == 3


@EACH_LISTENER
async def test_remembered_error_does_not_apply_to_other_requests(cache: Cache, hub: Hub, listener: Listener) -> None:
    """The other requests have another tag, another repository or another `Accept`."""
    index = hub.index("library/app", "multi", {"linux/arm64": hub.image("library/app", None, platform="linux/arm64")})
    assert (await cache.get(listener, "/v2/library/app/manifests/multi", accept=OCI_MANIFEST))[0] == 404
    assert (await cache.get(listener, "/v2/library/app/manifests/latets"))[0] == 404
    assert await cache.get(listener, "/v2/library/app/manifests/multi") == (200, index.manifest)
    assert (await cache.get(listener, "/v2/library/app/manifests/1"))[0] == 200


async def test_refusal_of_anonymous_clients_does_not_apply_to_a_user(cache: Cache, hub: Hub) -> None:
    for authorize in (False, True):
        cache.apply(authorize=authorize)
        assert (await cache.get(Listener.PROXY, "/v2/alice/secret/manifests/1"))[0] == 401
        own = bearer(hub, "alice", "alice/secret")
        outcome, _ = await cache.ask(Listener.PROXY, "GET", "/v2/alice/secret/manifests/1", authorization=own)
        assert isinstance(outcome, Forward) is not authorize
        assert isinstance(outcome, Forward) or outcome.status == 200


async def test_many_requests_of_logged_in_clients_in_a_public_repository_are_one_request_upstream(
    cache: Cache, hub: Hub
) -> None:
    """The repository is known to be public: credentials show no more content in it."""
    assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/1"))[0] == 200
    own = bearer(hub, "alice", "library/app")
    path = "/v2/library/app/manifests/latets"
    outcomes = [(await cache.ask(Listener.PROXY, "GET", path, authorization=own))[0] for _ in range(50)]
    assert len([outcome for outcome in outcomes if isinstance(outcome, Forward)]) <= 1


async def test_remembered_errors_hold_no_references_to_requests(cache: Cache, hub: Hub) -> None:
    """An exception that is raised repeatedly holds the frames of all its callers, with their requests."""
    for _ in range(20):
        assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/none"))[0] in (401, 404)
    remembered = [error for _, error in cache.engine._access._negative_cache._errors.values()]
    assert remembered
    assert [error.__traceback__ for error in remembered] == [None] * len(remembered)
