"""The next layer of an image is begun when no other one is downloaded, and a client still receives the one before."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, StorageError
from hubcache.serve.layers_ahead import LayersAhead
from hubcache.serve.messages import LAST_ATTEMPT, MAX_SMALL_BODY, Answer, Listener, Result
from hubcache.transfer import unread_fills
from hubcache.transfer.fill import Fill
from support.engine import Cache, read, running
from support.standin import Fault, Hub, Image, random_bytes
from support.users import EACH_LISTENER, bearer, settled, until
from support.workers import connected_worker

LAYERS = [random_bytes(20_000, f"layer {number}") for number in range(9)]
LARGE_LAYERS = [random_bytes(MAX_SMALL_BODY + number, f"large {number}") for number in range(1, 9)]
"""Layers that are sent from their files."""


def path_of(image: Image, number: int) -> str:
    return f"/v2/{image.repo}/blobs/{image.layers[number]}"


def numbers_of(image: Image, digests: set[str]) -> list[int]:
    return [number for number, layer in enumerate(image.layers) if layer in digests]


def stored_layers(cache: Cache, image: Image) -> list[int]:
    return [number for number, layer in enumerate(image.layers) if cache.engine.store.has(Digest.parse(layer))]


def filled_layers(cache: Cache, image: Image) -> list[int]:
    return numbers_of(image, {str(fill.digest) for fill in cache.engine.fills.progress()})


def pause(hub: Hub, image: Image, number: int, after: int = 10_000) -> Fault:
    """Pause downloads of one layer after so many bytes."""
    return hub.faults.add(Fault(kind="cdn", method="GET", path=f"*{image.layers[number]}*", pause_after=after))


async def request(cache: Cache, image: Image, *paths: str, listener: Listener = Listener.PROXY, **headers: str) -> None:
    """Request the tag and then these paths, one after another, each with its whole body; wait until all is stored."""
    for path in (f"/v2/{image.repo}/manifests/{image.tag}", *paths):
        status, _ = await cache.get(listener, path, **headers)
        assert status in (200, 206)
    await settled(cache)


async def opened(cache: Cache, image: Image, number: int, attempt: int = 0) -> Answer:
    """Request a layer, and receive nothing of it yet."""
    request = cache.request(Listener.PROXY, "GET", path_of(image, number))
    answer = await cache.engine.answer(replace(request, attempt=attempt))
    assert isinstance(answer, Answer)
    assert (answer.status, answer.source is not None) == (200, True)
    return answer


async def disconnect(answer: Answer) -> None:
    assert answer.source is not None
    await answer.source.close()


@pytest.fixture
def begun_beside(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> list[list[Digest]]:
    """For each fill that starts, the digests of those that receive bytes at that time."""
    found: list[list[Digest]] = []
    fills = cache.engine.fills
    start = fills.start

    def recorded(*arguments: Any) -> Fill:
        found.append([digest for digest, fill in fills._running.items() if not fill.verified])
        return start(*arguments)

    monkeypatch.setattr(fills, "start", recorded)
    return found


async def test_blob_is_closed_when_the_layers_after_it_cannot_be_found(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = hub.image("library/app", "1", LAYERS[:1])
    await request(cache, image, path_of(image, 0))
    assert cache.engine.store.usage.in_use == {}

    def fail(*_: object) -> None:
        raise StorageError("the index cannot be read")

    monkeypatch.setattr(LayersAhead, "blob_requested", fail)
    status, _ = await cache.get(Listener.PROXY, path_of(image, 0))
    assert status == 503
    assert cache.engine.store.usage.in_use == {}


@EACH_LISTENER
async def test_next_layer_is_fetched_for_a_client_that_has_received_one(
    cache: Cache, hub: Hub, listener: Listener
) -> None:
    """Its body ends at the same time as the fill: the layer after the next one is begun for no client."""
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image, path_of(image, 0), listener=listener)
    assert stored_layers(cache, image) == [0, 1]


async def test_no_layer_is_begun_while_the_requested_one_is_downloaded(cache: Cache, hub: Hub) -> None:
    """It would share the uplink with the one that the client needs now."""
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image)
    slow = pause(hub, image, 0)
    answer = await opened(cache, image, 0)
    assert answer.source is not None
    await answer.source.read()
    await asyncio.sleep(0)  # fetches that had begun would be listed now
    assert filled_layers(cache, image) == [0]
    hub.faults.remove(slow)
    await until(lambda: 1 in stored_layers(cache, image))  # at the end of the download, not of the body
    await disconnect(answer)


async def test_layers_are_fetched_one_after_another_while_the_client_receives_one(
    cache: Cache, hub: Hub, begun_beside: list[list[Digest]]
) -> None:
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image)
    answer = await opened(cache, image, 0)
    await until(lambda: stored_layers(cache, image) == list(range(len(LAYERS))))
    assert begun_beside == [[]] * len(LAYERS)
    assert await read(answer) == LAYERS[0]


async def test_next_layer_is_begun_at_once_when_the_requested_one_is_stored(cache: Cache, hub: Hub) -> None:
    base = hub.image("library/base", "1", LAYERS[:2])
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, base, path_of(base, 0))
    assert stored_layers(cache, image) == [0, 1]
    await request(cache, image)
    slow = pause(hub, image, 2)
    assert await cache.get(Listener.PROXY, path_of(image, 0)) == (200, LAYERS[0])
    assert filled_layers(cache, image) == [2]
    hub.faults.remove(slow)


async def test_nothing_is_begun_while_one_of_several_requested_layers_is_downloaded(
    cache: Cache, hub: Hub, begun_beside: list[list[Digest]]
) -> None:
    """As dockerd and containerd request them: three at a time."""
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image)
    slow = [pause(hub, image, number) for number in range(3)]
    answers = [await opened(cache, image, number) for number in range(3)]
    for number in (1, 0):
        hub.faults.remove(slow[number])
        assert await read(answers[number]) == LAYERS[number]
    await until(lambda: filled_layers(cache, image) == [2])
    assert stored_layers(cache, image) == [0, 1]
    hub.faults.remove(slow[2])
    assert await read(answers[2]) == LAYERS[2]
    await settled(cache)
    assert stored_layers(cache, image) == [0, 1, 2, 3]
    assert begun_beside[3:] == [[]]


async def test_nothing_is_begun_while_a_requested_layer_is_streamed_past_the_store(cache: Cache, hub: Hub) -> None:
    large = random_bytes(MAX_SMALL_BODY + 1)  # has a body that stays open
    image = hub.image("library/app", "1", [LAYERS[0], large, LAYERS[2]])
    await request(cache, image, path_of(image, 0))
    assert stored_layers(cache, image) == [0, 1]
    slow = pause(hub, image, 0)
    streamed = await opened(cache, image, 0, attempt=LAST_ATTEMPT)
    stored = await opened(cache, image, 1)
    assert filled_layers(cache, image) == []
    hub.faults.remove(slow)
    assert await read(streamed) == LAYERS[0]
    await until(lambda: 2 in stored_layers(cache, image))
    assert await read(stored) == large


async def test_nothing_is_begun_for_a_client_that_disconnects_during_the_download(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image)
    slow = pause(hub, image, 0)
    await disconnect(await opened(cache, image, 0))
    hub.faults.remove(slow)
    await settled(cache)
    assert stored_layers(cache, image) == [0]


async def test_nothing_is_begun_when_the_download_of_the_requested_layer_fails(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image)
    slow = pause(hub, image, 0)
    slow.corrupt_at = 0
    answer = await opened(cache, image, 0)
    hub.faults.remove(slow)
    with pytest.raises(BadUpstream):
        await read(answer)
    await settled(cache)
    assert stored_layers(cache, image) == []


async def test_nothing_is_begun_after_the_shutdown_has_begun(cache: Cache, hub: Hub) -> None:
    """A client may receive the layer that it has requested before."""
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image)
    slow = pause(hub, image, 0)
    answer = await opened(cache, image, 0)
    await cache.engine.stop_background_work()
    hub.faults.remove(slow)
    assert await read(answer) == LAYERS[0]
    await settled(cache)
    assert stored_layers(cache, image) == [0]


async def test_next_layer_is_begun_at_the_end_of_the_download_for_a_client_of_a_worker(
    hub: Hub, tmp_path: Path
) -> None:
    image = hub.image("library/app", "1", LAYERS)
    async with running(hub, tmp_path / "store") as cache, connected_worker(cache) as pair:
        await request(cache, image)
        slow = [pause(hub, image, number) for number in range(2)]
        first = await pair.get(path_of(image, 0), listener=Listener.PROXY)
        assert filled_layers(cache, image) == [0]
        hub.faults.remove(slow[0])
        await until(lambda: filled_layers(cache, image) == [1])
        assert await read(first) == LAYERS[0]
        await until(lambda: not cache.engine._layers_ahead._receiving)
        assert filled_layers(cache, image) == [1]
        hub.faults.remove(slow[1])
        second = await pair.get(path_of(image, 1), listener=Listener.PROXY)
        assert (second.result, await read(second)) == (Result.MISS, LAYERS[1])
        await until(lambda: 2 in stored_layers(cache, image))


async def test_layers_before_the_requested_one_are_not_fetched(cache: Cache, hub: Hub) -> None:
    """The client has them already."""
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image)
    answer = await opened(cache, image, 6)
    await until(lambda: not cache.engine._layers_ahead._tasks)
    await settled(cache)
    assert stored_layers(cache, image) == [6, 7, 8]
    await disconnect(answer)


async def test_config_alone_begins_no_layer(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image, f"/v2/{image.repo}/blobs/{image.config}")
    assert stored_layers(cache, image) == []


async def test_range_begins_no_layer(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image, path_of(image, 0), range="bytes=0-99")
    assert stored_layers(cache, image) == [0]


async def test_layers_of_a_private_image_are_not_fetched(cache: Cache, hub: Hub) -> None:
    image = hub.image("alice/secret", "1", LAYERS)
    hub.private("alice/secret", {"alice": "alice's"})
    cache.apply(authorize=True)
    await request(cache, image, path_of(image, 0), authorization=bearer(hub, "alice", "alice/secret"))
    assert stored_layers(cache, image) == [0]


async def test_sequential_client_pulls_each_layer_once(
    cache: Cache, hub: Hub, begun_beside: list[list[Digest]]
) -> None:
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image, *(path_of(image, number) for number in range(len(LAYERS))))
    assert hub.count(kind="cdn") == len(LAYERS)
    assert begun_beside == [[]] * len(LAYERS)


async def test_layer_that_was_fetched_ahead_is_a_miss_once(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image, path_of(image, 0))
    results = []
    for _ in range(2):
        answer, body = await cache.ask(Listener.PROXY, "GET", path_of(image, 1))
        assert isinstance(answer, Answer)
        assert body == LAYERS[1]
        results.append(answer.result)
    assert results == [Result.MISS, Result.HIT]


async def test_failing_layer_is_requested_again_by_the_client(cache: Cache, hub: Hub) -> None:
    """And no layer after it is begun: all may fail, and a client that requests layers and disconnects would cause as
    many requests to the upstream."""
    image = hub.image("library/app", "1", LAYERS)
    failing = hub.faults.add(Fault(kind="blob", path=f"*{image.layers[1]}*", status=503))
    await request(cache, image)
    answer = await opened(cache, image, 0)
    await until(lambda: not cache.engine._layers_ahead._tasks)
    await settled(cache)
    assert stored_layers(cache, image) == [0]
    assert await read(answer) == LAYERS[0]
    hub.faults.remove(failing)
    assert await cache.get(Listener.PROXY, path_of(image, 1)) == (200, LAYERS[1])


async def test_layer_that_failed_ahead_does_not_count_as_fetched_for_the_client(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", LARGE_LAYERS)
    failing = hub.faults.add(Fault(kind="blob", path=f"*{image.layers[1]}*", status=404))
    await request(cache, image, path_of(image, 0))
    answer = await opened(cache, image, 0)
    await until(lambda: not cache.engine._layers_ahead._tasks)
    await disconnect(answer)
    hub.faults.remove(failing)
    asked = cache.request(Listener.PROXY, "GET", path_of(image, 1))
    assert await read(await cache.engine.answer(replace(asked, client="10.0.0.99"))) == LARGE_LAYERS[1]
    await settled(cache)
    own = await cache.engine.answer(asked)
    assert isinstance(own, Answer)
    assert own.result is Result.HIT
    await read(own)


async def test_nothing_waits_for_a_client_that_disconnected(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", LARGE_LAYERS)
    await request(cache, image, path_of(image, 0))
    slow = pause(hub, image, 5)
    await disconnect(await opened(cache, image, 5))  # its fill continues without readers
    for _ in range(20):
        await disconnect(await opened(cache, image, 0))
    await until(lambda: not cache.engine._layers_ahead._tasks)
    hub.faults.remove(slow)
    await settled(cache)


async def begun(cache: Cache, hub: Hub, name: str) -> tuple[Image, Fault, Answer]:
    """Request the first layer of a new image, receive none of it, and wait for the next one to begin, which pauses."""
    image = hub.image(name, "1", [random_bytes(1_500_000, f"{name} {number}") for number in range(3)])
    await cache.get(Listener.PROXY, f"/v2/{image.repo}/manifests/{image.tag}")
    slow = pause(hub, image, 1, 100_000)
    answer = await opened(cache, image, 0)
    await until(lambda: filled_layers(cache, image) == [1] and fills_of(cache, image)[0].written == 100_000)
    return image, slow, answer


def fills_of(cache: Cache, image: Image) -> list[Fill]:
    return [fill for fill in cache.engine.fills._running.values() if str(fill.digest) in image.layers]


def active(cache: Cache) -> int:
    return sum(not fill.is_paused for fill in cache.engine.fills._running.values())


async def test_clients_that_disconnect_leave_few_layers_behind(cache: Cache, hub: Hub) -> None:
    """Those that are fetched ahead continue as other fills do; each again while the client receives a layer again."""
    pulls = [await begun(cache, hub, f"library/app{number}") for number in range(unread_fills.MAX_UNREAD + 1)]
    assert active(cache) == len(pulls)
    for _, _, answer in pulls:
        await disconnect(answer)
    await until(lambda: active(cache) == unread_fills.MAX_UNREAD)
    [(image, slow)] = [(image, slow) for image, slow, _ in pulls if fills_of(cache, image)[0].is_paused]
    again = await opened(cache, image, 0)
    await until(lambda: active(cache) == len(pulls))
    hub.faults.remove(slow)
    await until(lambda: stored_layers(cache, image) == [0, 1, 2])
    await disconnect(again)
    for _, slow, _ in pulls:
        hub.faults.remove(slow)
