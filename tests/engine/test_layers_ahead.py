"""The next layers of an image are begun while a client still receives the ones before."""

import asyncio

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.serve import layers_ahead
from hubcache.serve.layers_ahead import LayersAhead
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.transfer import unread_fills
from support.engine import Cache, read
from support.standin import Fault, Hub, Image, random_bytes
from support.users import EACH_LISTENER, bearer, settled, until

LAYERS = [random_bytes(20_000, f"layer {number}") for number in range(9)]
MOST_BESIDE = 5


@pytest.fixture(autouse=True)
def _several_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_ahead, "MOST_BESIDE", MOST_BESIDE)


def path_of(image: Image, number: int) -> str:
    return f"/v2/{image.repo}/blobs/{image.layers[number]}"


def stored_layers(cache: Cache, image: Image) -> list[int]:
    return [number for number, layer in enumerate(image.layers) if cache.engine.store.has(Digest.parse(layer))]


async def request(cache: Cache, image: Image, *paths: str, listener: Listener = Listener.PROXY, **headers: str) -> None:
    """Request the tag and then these paths, one after another, each with its whole body; wait until all is stored."""
    for path in (f"/v2/{image.repo}/manifests/{image.tag}", *paths):
        status, _ = await cache.get(listener, path, **headers)
        assert status in (200, 206)
    await settled(cache)


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
async def test_layers_after_the_requested_one_are_fetched(cache: Cache, hub: Hub, listener: Listener) -> None:
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image, path_of(image, 0), listener=listener)
    assert stored_layers(cache, image) == list(range(1 + MOST_BESIDE))


async def test_layers_before_the_requested_one_are_not_fetched(cache: Cache, hub: Hub) -> None:
    """The client has them already."""
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image, path_of(image, 6))
    assert stored_layers(cache, image) == [6, 7, 8]


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


async def test_sequential_client_pulls_each_layer_once(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", LAYERS)
    await request(cache, image, *(path_of(image, number) for number in range(len(LAYERS))))
    assert hub.count(kind="cdn") == len(LAYERS)


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


async def test_client_of_many_requests_causes_no_further_ones(cache: Cache, hub: Hub) -> None:
    """They share the uplink: more would delay the layer that is unpacked first."""
    image = hub.image("library/app", "1", LAYERS)
    await cache.get(Listener.PROXY, f"/v2/{image.repo}/manifests/1")
    slow = hub.faults.add(Fault(kind="cdn", pause_after=10_000))
    answers = []
    for number in range(1 + MOST_BESIDE):
        answer = await cache.engine.answer(cache.request(Listener.PROXY, "GET", path_of(image, number)))
        assert isinstance(answer, Answer)
        answers.append(answer)
    await asyncio.sleep(0)  # fetches that had begun would be listed now
    assert {str(fill.digest) for fill in cache.engine.fills.progress()} == set(image.layers[: 1 + MOST_BESIDE])
    hub.faults.remove(slow)
    for answer, layer in zip(answers, LAYERS, strict=False):
        assert await read(answer) == layer


async def test_failing_layer_is_requested_again_by_the_client(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1", LAYERS)
    failing = hub.faults.add(Fault(kind="blob", path=f"*{image.layers[1]}*", status=503))
    await request(cache, image, path_of(image, 0))
    assert stored_layers(cache, image) == [0, *range(2, 1 + MOST_BESIDE)]
    hub.faults.remove(failing)
    assert await cache.get(Listener.PROXY, path_of(image, 1)) == (200, LAYERS[1])


async def begun(cache: Cache, hub: Hub, name: str, count: int = 3) -> tuple[Image, Answer]:
    """Request the first layer of a new image, which pauses as all do, and receive its first bytes."""
    image = hub.image(name, "1", [random_bytes(1_500_000, f"{name} {number}") for number in range(count)])
    await cache.get(Listener.PROXY, f"/v2/{image.repo}/manifests/1")
    answer = await cache.engine.answer(cache.request(Listener.PROXY, "GET", path_of(image, 0)))
    assert isinstance(answer, Answer)
    assert answer.source is not None
    await answer.source.read()
    return image, answer


def active(cache: Cache) -> int:
    return sum(not fill.is_paused for fill in cache.engine.fills._running.values())


async def disconnect(answer: Answer) -> None:
    assert answer.source is not None
    await answer.source.close()


async def test_clients_that_disconnect_leave_few_layers_behind(cache: Cache, hub: Hub) -> None:
    slow = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=100_000))
    pulls = [await begun(cache, hub, f"library/app{number}") for number in range(5)]
    await until(lambda: [fill.size for fill in cache.engine.fills.progress()] == [1_500_000] * 15)
    for _, answer in pulls:
        await disconnect(answer)
    await until(lambda: active(cache) <= unread_fills.MAX_UNREAD)
    hub.faults.remove(slow)


async def test_layers_ahead_continue_while_the_client_receives_a_layer(cache: Cache, hub: Hub) -> None:
    slow = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=100_000))
    image, first = await begun(cache, hub, "library/app", 1 + MOST_BESIDE)
    await until(lambda: [fill.readers > 0 for fill in cache.engine.fills.progress()] == [True] * (1 + MOST_BESIDE))
    await disconnect(first)
    await until(lambda: active(cache) == unread_fills.MAX_UNREAD)
    again = await cache.engine.answer(cache.request(Listener.PROXY, "GET", path_of(image, 0)))
    assert isinstance(again, Answer)
    await until(lambda: active(cache) == 1 + MOST_BESIDE)
    hub.faults.remove(slow)
    await read(again)
    await settled(cache)
    assert stored_layers(cache, image) == list(range(1 + MOST_BESIDE))
