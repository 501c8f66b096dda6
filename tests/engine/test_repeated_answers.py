"""Small answers are repeated from memory, counted as new ones are, and never after a change or to the wrong client."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve import answer_cache
from hubcache.serve.messages import LOCAL_TOKEN, Answer, Change, Listener
from support.engine import SETUP, Cache, read, running
from support.standin import Hub, Image
from support.users import EACH_LISTENER, REFUSED, SECRET, bearer, pull, settled, turn_private

REPO = "library/app"
LAYER = b"a small layer"


@pytest.fixture(autouse=True)
def long_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat answers until a change, so that no test depends on its speed."""
    monkeypatch.setattr(answer_cache, "SECONDS", 60.0)


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store", access_log=tmp_path / "log") as started:
        yield started


async def no_answer(*_: object) -> Answer:
    raise AssertionError("the request was not answered from memory")


def requests_of(image: Image) -> list[tuple[str, str]]:
    references = ("1", image.digest)
    manifests = [(method, f"/v2/{REPO}/manifests/{each}") for method in ("HEAD", "GET") for each in references]
    blobs = [(method, f"/v2/{REPO}/blobs/{image.layers[0]}") for method in ("HEAD", "GET")]
    return [*manifests, *blobs]


async def stored_image(cache: Cache, hub: Hub, listener: Listener) -> Image:
    image = hub.image(REPO, "1", [LAYER])
    await pull(cache, image, listener)
    for method, path in requests_of(image):
        await cache.ask(listener, method, path)
    await settled(cache)
    return image


async def ask_all(cache: Cache, listener: Listener, requests: list[tuple[str, str]], **headers: str) -> list[Any]:
    found = []
    for method, path in requests:
        answer, body = await cache.ask(listener, method, path, **headers)
        assert isinstance(answer, Answer)
        found.append((answer.status, answer.result, answer.length, answer.headers, answer.is_repeated, body))
    return found


@EACH_LISTENER
async def test_stored_image_is_repeated_from_memory(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    image = await stored_image(cache, hub, listener)
    conditional = {"if_none_match": f'"{image.digest}"', "authorization": f"Bearer {LOCAL_TOKEN}"}
    before = await ask_all(cache, listener, requests_of(image))
    unchanged = await ask_all(cache, listener, requests_of(image)[:4], **conditional)
    monkeypatch.setattr(cache.engine.service, "answer", no_answer)
    assert await ask_all(cache, listener, requests_of(image)) == before
    assert await ask_all(cache, listener, requests_of(image)[:4], **conditional) == unchanged
    assert {status for status, *_ in unchanged} == {304}
    assert [body for *_, body in before[2:]] == [image.manifest, image.manifest, b"", LAYER]


async def test_other_requests_are_not_answered_from_memory(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await stored_image(cache, hub, Listener.PROXY)
    path = f"/v2/{REPO}/blobs/{image.layers[0]}"
    await ask_all(cache, Listener.PROXY, [("GET", path)])
    asked: list[dict[str, str]] = []
    answer = cache.engine.service.answer

    async def noted(request: Any) -> Any:
        asked.append(request.headers)
        return await answer(request)

    monkeypatch.setattr(cache.engine.service, "answer", noted)
    for headers in ({"range": "bytes=0-3"}, {"authorization": bearer(hub, "alice", REPO)}):
        for _ in range(2):
            outcome, body = await cache.ask(Listener.PROXY, "GET", path, **headers)
            assert isinstance(outcome, Answer)
            assert body == (LAYER[:4] if "range" in headers else LAYER)
    assert len(asked) == 4


def watched(cache: Cache) -> list[tuple[tuple[str, ...], int]]:
    """Return the tags that are watched, with the requests that were counted, which decay."""
    tags = cache.engine._tag_refresh._watched.items()
    return sorted((key, round(tag.daily_requests)) for key, tag in tags)


async def observed(hub: Hub, directory: Path, listener: Listener, *, repeats: bool, stored_only: bool) -> list[Any]:
    """Return all that is counted for an image that two clients request four times each."""
    image = hub.image(REPO, "1", [LAYER])
    paths = [*requests_of(image), ("GET", "/v2/"), ("GET", f"/v2/{REPO}/referrers/{image.digest}")]
    bodies: list[bytes] = []
    SETUP._answered.clear()
    async with running(hub, directory / "store", access_log=directory / "log", sync=True) as cache:
        await pull(cache, image, listener)
        cache.apply(offer_only=stored_only)
        with pytest.MonkeyPatch.context() as patch:
            if not repeats:
                patch.setattr(cache.engine._answers, "put", lambda *_: None)
            for number in range(8):
                for method, path in paths:
                    request = replace(cache.request(listener, method, path), client=f"10.0.0.{number % 2}")
                    outcome = await cache.engine.answer(request)
                    assert isinstance(outcome, Answer)
                    bodies.append(await read(outcome))
        return [bodies, *counted(cache, image, directory / "log")]


def counted(cache: Cache, image: Image, log: Path) -> list[Any]:
    """Return the lines of the access log, the popularity of content, metrics, pulls, tags, and requests by client."""
    engine: Any = cache.engine
    engine._recorder.flush_access_log()
    engine._recorder.flush()
    retention, now = engine.store.capacity.retention, engine.store.popularity._clock()
    digests = [Digest.parse(each) for each in (image.digest, image.config, *image.layers)]
    shown = ("hubcache_requests", "hubcache_sent", "hubcache_pulls")
    return [
        [json.loads(line) | {"ts": 0} for line in log.read_text().splitlines()],
        [round(retention.requests(digest, now), 1) for digest in digests],
        [line for line in engine.metrics.render().decode().splitlines() if line.startswith(shown)],
        {key: (found.running, found.is_pull) for key, found in engine.pulls._open.items()},
        sorted((key, round(tag.daily_requests)) for key, tag in engine._tag_refresh._watched.items()),
        dict(SETUP._answered),
    ]


@EACH_LISTENER
@pytest.mark.parametrize("stored_only", [False, True], ids=["all", "stored-only"])
async def test_repeats_are_counted_as_new_answers_are(
    hub: Hub, tmp_path: Path, listener: Listener, stored_only: bool
) -> None:
    without, with_repeats = [
        await observed(hub, tmp_path / f"{repeats}", listener, repeats=repeats, stored_only=stored_only)
        for repeats in (False, True)
    ]
    assert with_repeats == without
    assert all(without)


async def test_answer_is_new_after_content_was_removed(cache: Cache, hub: Hub) -> None:
    image = await stored_image(cache, hub, Listener.MIRROR)
    requests = hub.count(kind="cdn", method="GET")
    await cache.engine.store.remove(Digest.parse(image.layers[0]))
    assert await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{image.layers[0]}") == (200, LAYER)
    assert hub.count(kind="cdn", method="GET") == requests + 1


async def test_answer_is_new_after_a_push(cache: Cache, hub: Hub) -> None:
    await stored_image(cache, hub, Listener.MIRROR)
    pushed = hub.image(REPO, "1", [b"another layer"])
    await cache.engine.content_changed(cache.settings.registries[0], Change(REPO, "1"))
    assert await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1") == (200, pushed.manifest)


async def test_answer_is_new_after_an_option_changed(cache: Cache, hub: Hub) -> None:
    await stored_image(cache, hub, Listener.MIRROR)
    moved = hub.image(REPO, "1", [b"another layer"])
    cache.apply(tag_ttl=0.0)
    assert await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1") == (200, moved.manifest)


@EACH_LISTENER
async def test_answer_is_not_repeated_after_a_refusal(cache: Cache, hub: Hub, listener: Listener) -> None:
    image = await stored_image(cache, hub, listener)
    turn_private(hub, REPO)
    await cache.ask(listener, "GET", f"/v2/{REPO}/manifests/2")
    for method, path in requests_of(image):
        answer, body = await cache.ask(listener, method, path)
        assert isinstance(answer, Answer)
        assert answer.status == REFUSED[listener]
        assert image.manifest not in body


async def test_change_while_a_request_is_answered_prevents_its_repetition(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await stored_image(cache, hub, Listener.MIRROR)
    service, path = cache.engine.service, f"/v2/{REPO}/manifests/{image.digest}"
    answer, old = service.answer, (await cache.ask(Listener.MIRROR, "GET", path))[0]

    async def outdated(_: object) -> Any:
        cache.engine.store.index.on_change()
        return old

    cache.engine.store.index.on_change()
    monkeypatch.setattr(service, "answer", outdated)
    assert (await cache.ask(Listener.MIRROR, "GET", path))[0] is old
    monkeypatch.setattr(service, "answer", no_answer)
    with pytest.raises(AssertionError, match="not answered from memory"):
        await cache.ask(Listener.MIRROR, "GET", path)
    monkeypatch.setattr(service, "answer", answer)
    assert await cache.get(Listener.MIRROR, path) == (200, image.manifest)


async def test_private_image_is_not_repeated_to_others(hub: Hub, tmp_path: Path) -> None:
    image = hub.image(SECRET, "1", [LAYER])
    hub.user("alice", "password")
    hub.private(SECRET, ["alice"])
    own = bearer(hub, "alice", SECRET)
    async with running(hub, tmp_path / "store", authorize=True) as cache:
        for path in (f"/v2/{SECRET}/manifests/{image.digest}", f"/v2/{SECRET}/blobs/{image.layers[0]}"):
            for _ in range(3):
                assert (await cache.get(Listener.PROXY, path, authorization=own))[0] == 200
                await settled(cache)
            for listener, status in REFUSED.items():
                assert (await cache.get(listener, path))[0] == status
        assert len(cache.engine._answers._answers) == 0
