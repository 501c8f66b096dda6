"""A worker answers as the engine does, with bytes of stored blobs and of fills."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve import cached_blobs
from hubcache.serve.messages import Answer, Change, Forward, Listener, Result
from hubcache.workers import owner_client
from support.engine import read, running
from support.standin import Fault, Hub
from support.users import basic, until
from support.workers import DATA, REPO, EngineWithWorker, connected_worker, engine_with_worker_fixture, requests

pair = engine_with_worker_fixture()


async def test_image_is_served_before_and_after_it_is_stored_and_released(pair: EngineWithWorker, hub: Hub) -> None:
    image = hub.image(REPO, "1", [DATA])
    store = pair.cache.engine.store
    for wanted in (Result.MISS, Result.HIT):
        manifest = await pair.get(f"/v2/{REPO}/manifests/1")
        assert (manifest.status, manifest.body) == (200, image.manifest)
        layer = await pair.get(f"/v2/{REPO}/blobs/{image.layers[0]}")
        assert (layer.status, layer.result, layer.length) == (200, wanted, len(DATA))
        assert await read(layer) == DATA
        part = await pair.get(f"/v2/{REPO}/blobs/{image.layers[0]}", range="bytes=-5")
        assert (part.status, await read(part)) == (206, DATA[-5:])
        await pair.settled()
    await until(lambda: not store.usage.in_use)
    assert hub.count(kind="cdn", method="GET") == 1
    assert (await pair.get(f"/v2/{REPO}/blobs/{image.layers[0]}", "HEAD")).length == len(DATA)
    assert (await pair.get(f"/v2/{REPO}/manifests/none")).status == 404


async def test_bytes_arrive_while_the_fill_runs(pair: EngineWithWorker, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1_000_000))
    answer = await pair.get(f"/v2/{REPO}/blobs/{digest}")
    assert answer.source is not None
    first = await answer.source.read()
    assert first == DATA[: len(first)] != b""
    hub.faults.remove(fault)
    rest = await read(answer)
    assert first + rest == DATA


async def test_disconnected_client_of_a_worker_is_no_reader_of_the_fill(pair: EngineWithWorker, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1_000_000))
    readers = lambda: [one.readers for one in pair.cache.engine.fills.progress()]  # noqa: E731
    first, second = await pair.get(f"/v2/{REPO}/blobs/{digest}"), await pair.get(f"/v2/{REPO}/blobs/{digest}")
    assert readers() == [2]
    for answer, remaining in ((first, 1), (second, 0)):
        assert answer.source is not None
        await answer.source.close()
        await until(lambda remaining=remaining: readers() == [remaining])
    hub.faults.remove(fault)
    await pair.settled()
    assert pair.cache.engine.store.has(Digest.parse(digest))


async def test_many_readers_of_one_missing_blob_are_one_fetch(pair: EngineWithWorker, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    answers = await asyncio.gather(*(pair.get(f"/v2/{REPO}/blobs/{digest}") for _ in range(16)))
    assert set(await asyncio.gather(*map(read, answers))) == {DATA}
    assert hub.count(kind="cdn", method="GET") == 1


async def test_range_ahead_of_the_fill_is_fetched_in_parallel_or_read_from_it(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_blobs, "FAR_AHEAD", 100_000)
    digest = hub.blob(REPO, DATA)
    fill = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000, times=1))
    filler = await pair.get(f"/v2/{REPO}/blobs/{digest}")
    part = f"bytes={len(DATA) - 100}-"
    assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}", range=part)) == DATA[-100:]
    assert hub.count(kind="cdn", method="GET") == 2
    beside = hub.faults.add(Fault(kind="blob", status=503))
    late = asyncio.create_task(pair.get(f"/v2/{REPO}/blobs/{digest}", range=part))
    await until(lambda: beside.hits)
    hub.faults.remove(fill)
    assert await read(filler) == DATA
    assert await read(await late) == DATA[-100:]
    assert hub.count(kind="cdn", method="GET") == 2


async def test_progress_of_a_fill_is_reported_once_for_all_its_readers(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1_000_000))
    received: list[list[Any]] = []
    receive = pair.remote._receive
    monkeypatch.setattr(pair.remote, "_receive", lambda head, payload: (received.append(head), receive(head, payload)))
    early = await asyncio.gather(*(pair.get(f"/v2/{REPO}/blobs/{digest}") for _ in range(8)))
    await until(lambda: any(head[0] == "readable" and head[2] >= 900_000 for head in received))
    late = await pair.get(f"/v2/{REPO}/blobs/{digest}")
    assert late.source is not None
    first = await late.source.read()
    assert first
    hub.faults.remove(fault)
    assert set(await asyncio.gather(*map(read, early))) == {DATA}
    await until(lambda: not pair.remote._fills)
    numbers = {head[1] for head in received if head[0] in ("readable", "complete")}
    assert len(numbers) == 1
    counts = [head[2] for head in received if head[0] == "readable"]
    assert counts == sorted(set(counts))
    assert first + await read(late) == DATA
    assert pair.remote._opening == {}


async def test_blob_that_cannot_be_stored_is_served(pair: EngineWithWorker, hub: Hub) -> None:
    pair.cache.apply(max_blob=1000)
    answer = await pair.get(f"/v2/{REPO}/blobs/{hub.blob(REPO, DATA)}")
    assert await read(answer) == DATA
    assert "stored" not in answer.headers["Cache-Status"]


async def test_token_request_is_answered_when_its_body_is_there(pair: EngineWithWorker, hub: Hub) -> None:
    hub.user("alice", "secret")
    plain = pair.cache.request(Listener.PROXY, "POST", "/token", authorization=basic("alice", "secret"))
    request = type(plain)(**{name: getattr(plain, name) for name in plain.__slots__} | {"to_token_service": True})
    assert await pair.remote.answer(request) is None


async def test_push_is_forwarded_and_invalidates_the_tag(pair: EngineWithWorker, hub: Hub) -> None:
    hub.image(REPO, "1", [b"old"])
    await pair.get(f"/v2/{REPO}/manifests/1")
    request = pair.cache.request(Listener.PROXY, "PUT", f"/v2/{REPO}/manifests/1", authorization="Bearer own")
    outcome = await pair.remote.answer(request)
    assert outcome == Forward("Bearer own", Change(REPO, "1"), "manifest")
    new = hub.image(REPO, "1", [b"new"])
    await pair.remote.content_changed(request.registry, Change(REPO, "1"))
    assert (await pair.get(f"/v2/{REPO}/manifests/1")).body == new.manifest


async def test_recent_answer_is_repeated_and_counted(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubcache.serve.answer_cache.SECONDS", 60.0)
    hub.image(REPO, "1", [b"layer"])
    engine = pair.cache.engine
    digest = hub.blob(REPO, b"layer")
    for path in (f"/v2/{REPO}/manifests/1", f"/v2/{REPO}/blobs/{digest}"):
        await pair.get(path)
        await pair.settled()
        kept = await pair.get(path)
        labels = {"door": "mirror", "kind": path.split("/")[-2].removesuffix("s"), "result": "hit"}
        before = engine.metrics.registry.get_sample_value("hubcache_requests_total", labels) or 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pair.remote, "_request_answer", None)
            repeated = [await pair.get(path) for _ in range(3)]
        assert repeated == [replace(kept, is_repeated=True)] * 3
        assert kept.body

        def is_counted(labels: dict[str, str] = labels, expected: float = before + 3) -> bool:
            return engine.metrics.registry.get_sample_value("hubcache_requests_total", labels) == expected

        await until(is_counted)


async def test_answer_is_not_repeated_after_the_content_was_removed(pair: EngineWithWorker, hub: Hub) -> None:
    """Counted by fetches: a blob that is stored before the worker opens its staged file is a hit."""
    path = f"/v2/{REPO}/blobs/{hub.blob(REPO, b'layer')}"
    for _ in range(3):
        assert await read(await pair.get(path)) == b"layer"
        await pair.settled()
    assert hub.count(kind="cdn", method="GET") == 1
    await pair.cache.engine.store.remove(Digest.of(b"layer"))
    assert await read(await pair.get(path)) == b"layer"
    assert hub.count(kind="cdn", method="GET") == 2


async def test_last_repeats_are_counted_before_the_worker_ends(hub: Hub, tmp_path: Path) -> None:
    hub.image(REPO, "1", [b"layer"])
    async with running(hub, tmp_path / "store") as cache:
        async with connected_worker(cache) as pair:
            for _ in range(5):
                await pair.get(f"/v2/{REPO}/manifests/1")
        assert requests(pair) == 5


async def test_sent_bytes_are_counted_by_the_owner(pair: EngineWithWorker) -> None:
    pair.remote._count_sent("store", 100)
    pair.remote._count_sent("store", 23)
    text = 'hubcache_sent_bytes_total{source="store"} 123.0'
    await until(lambda: text in pair.cache.engine.metrics.render().decode())


async def test_token_of_a_user_comes_with_the_answer(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body is in a source, so that no flow shows it, but it needs no second request to the owner."""
    hub.user("alice", "secret")
    monkeypatch.setattr(pair.remote, "read", None)
    request = pair.cache.request(
        Listener.PROXY,
        "GET",
        f"/token?service=registry.docker.io&scope=repository:{REPO}:pull",
        authorization=basic("alice", "secret"),
    )
    answer = await pair.remote.answer(replace(request, to_token_service=True))
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body) == (200, b"")
    assert "token" in json.loads(await read(answer))


async def test_what_has_ended_is_reported_with_the_next_request(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write to the owner wakes it up."""
    monkeypatch.setattr(owner_client, "ENDED_SECONDS", 60.0)
    monkeypatch.setattr(pair.remote, "_report_counts", lambda: None)
    path = f"/v2/{REPO}/blobs/{hub.blob(REPO, DATA)}"
    await read(await pair.get(path))
    await pair.settled()
    written: list[bytes] = []
    write = pair.remote._writer.write
    monkeypatch.setattr(pair.remote._writer, "write", lambda data: (written.append(data), write(data)))
    usage, digest = pair.cache.engine.store.usage, Digest.parse(path.rpartition("/")[2])
    for _ in range(3):
        assert await read(await pair.get(path)) == DATA
    assert len([data for data in written if b'"request"' in data]) == 3
    assert len(written) == 3
    assert usage.in_use == {digest: 1}
    await pair.get("/v2/")
    assert not usage.in_use
