"""A worker gets from its owner what the engine would have given, bytes of stored and arriving blobs included."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import HubcacheError
from hubcache.serve.messages import Answer, Door, Forward, Result
from hubcache.workers.epoch import Epoch
from hubcache.workers.owner import Owner, _Conversation
from hubcache.workers.remote import EPOCH, Remote
from people import basic, until
from rig import Cache, read, running
from standin import Fault, Hub, random_bytes

REPO = "library/app"
DATA = random_bytes(3_000_000)


class Pair:
    """An engine, and a worker of it in the same process."""

    def __init__(self, cache: Cache, remote: Remote, workers: list[int], lost: asyncio.Event) -> None:
        self.cache = cache
        self.remote = remote
        self.workers = workers
        self.lost = lost

    async def get(self, path: str, method: str = "GET", door: Door = Door.MIRROR, **headers: str) -> Answer:
        outcome = await self.remote.answer(self.cache.request(door, method, path, **headers))
        assert isinstance(outcome, Answer)
        return outcome

    async def settled(self) -> None:
        await until(lambda: not self.cache.engine.fills._tasks)


def requests(pair: Pair) -> float:
    """How many the owner has counted."""
    [family] = [one for one in pair.cache.engine.metrics.registry.collect() if one.name == "hubcache_requests"]
    return sum(sample.value for sample in family.samples)


@asynccontextmanager
async def paired(cache: Cache, folder: Path) -> AsyncIterator[Pair]:
    workers: list[int] = []
    lost = asyncio.Event()
    owner = Owner(cache.engine, workers.append)
    epoch = Epoch.create(folder / f"owner{EPOCH}")
    cache.engine.watch(epoch.advance)
    server = await asyncio.start_unix_server(owner.serve, folder / "owner")
    remote = await Remote.connect(str(folder / "owner"), lost.set)
    try:
        yield Pair(cache, remote, workers, lost)
    finally:
        await remote.close()
        server.close()
        await until(lambda: owner.connected == 0)


@pytest.fixture
async def pair(hub: Hub, tmp_path: Path) -> AsyncIterator[Pair]:
    async with running(hub, tmp_path / "store") as cache, paired(cache, tmp_path) as found:
        yield found


async def test_whole_image_cold_and_warm_and_what_it_held_is_released(pair: Pair, hub: Hub) -> None:
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
    await until(lambda: not store.ledger.in_use)
    assert hub.count(kind="cdn", method="GET") == 1
    assert (await pair.get(f"/v2/{REPO}/blobs/{image.layers[0]}", "HEAD")).length == len(DATA)
    assert (await pair.get(f"/v2/{REPO}/manifests/none")).status == 404


async def test_bytes_arrive_while_the_fill_goes_on(pair: Pair, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1_000_000))
    answer = await pair.get(f"/v2/{REPO}/blobs/{digest}")
    assert answer.source is not None
    first = await answer.source.read()
    assert first == DATA[: len(first)] != b""
    hub.faults.remove(fault)
    rest = await read(answer)
    assert first + rest == DATA


async def test_many_readers_of_one_cold_blob_are_one_fetch(pair: Pair, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    answers = await asyncio.gather(*(pair.get(f"/v2/{REPO}/blobs/{digest}") for _ in range(16)))
    assert set(await asyncio.gather(*map(read, answers))) == {DATA}
    assert hub.count(kind="cdn", method="GET") == 1


async def test_worker_is_told_of_a_fill_once_for_all_its_readers(
    pair: Pair, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1_000_000))
    heard: list[list[Any]] = []
    hear = pair.remote._hear
    monkeypatch.setattr(pair.remote, "_hear", lambda head, payload: (heard.append(head), hear(head, payload)))
    early = await asyncio.gather(*(pair.get(f"/v2/{REPO}/blobs/{digest}") for _ in range(8)))
    await until(lambda: any(head[0] == "readable" and head[2] >= 900_000 for head in heard))
    late = await pair.get(f"/v2/{REPO}/blobs/{digest}")
    assert late.source is not None
    first = await late.source.read()
    assert first
    hub.faults.remove(fault)
    assert set(await asyncio.gather(*map(read, early))) == {DATA}
    await until(lambda: not pair.remote._fills)
    numbers = {head[1] for head in heard if head[0] in ("readable", "whole")}
    assert len(numbers) == 1
    counts = [head[2] for head in heard if head[0] == "readable"]
    assert counts == sorted(set(counts))
    assert first + await read(late) == DATA
    assert pair.remote._opening == {}


async def test_defect_in_telling_of_a_fill_breaks_its_readers_off(
    pair: Pair, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(_Conversation, "_tell_progress", broken)
    hub.faults.add(Fault(kind="cdn", pause_after=1_000_000))
    answer = await pair.get(f"/v2/{REPO}/blobs/{hub.blob(REPO, DATA)}")
    with pytest.raises(HubcacheError, match="internal"):
        await asyncio.wait_for(read(answer), 10)
    hub.faults.clear()
    assert pair.remote._fills == {}


async def test_answer_that_comes_as_its_asker_gives_up_is_released(pair: Pair, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    hear = pair.remote._hear
    asking: asyncio.Task[Answer] | None = None

    def give_up(head: list[Any], payload: bytes) -> None:
        hear(head, payload)
        if head[0] == "answered" and asking is not None:
            asking.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair.remote, "_hear", give_up)
        await pair.get("/v2/")  # whatever waits for a frame already has found the method
        asking = asyncio.create_task(pair.get(f"/v2/{REPO}/blobs/{digest}"))
        with pytest.raises(asyncio.CancelledError):
            await asking
    await pair.settled()
    await until(lambda: not pair.cache.engine.store.ledger.in_use)
    assert pair.remote._opening == {}


async def test_wrong_bytes_break_the_body_off(pair: Pair, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    hub.faults.add(Fault(kind="cdn", corrupt_at=len(DATA) - 1, pause_after=1_000_000, times=1))
    answer = await pair.get(f"/v2/{REPO}/blobs/{digest}")
    hub.faults.clear()
    with pytest.raises(HubcacheError):
        await read(answer)


async def test_blob_that_the_store_does_not_take_is_passed_on(pair: Pair, hub: Hub) -> None:
    pair.cache.apply(max_blob=1000)
    answer = await pair.get(f"/v2/{REPO}/blobs/{hub.blob(REPO, DATA)}")
    assert await read(answer) == DATA
    assert "stored" not in answer.headers["Cache-Status"]


async def test_file_that_is_always_gone_before_it_is_opened_costs_the_client_nothing(
    pair: Pair, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, DATA)

    def gone(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr("hubcache.workers.remote.os", SimpleNamespace(open=gone, O_RDONLY=os.O_RDONLY))
    assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == DATA
    assert requests(pair) == 1


async def test_file_that_was_gone_before_it_was_opened_is_found_again_and_counted_once(
    pair: Pair, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pair.cache.apply(access_log=tmp_path / "access")
    digest = hub.blob(REPO, DATA)
    missed: list[Path] = []

    def late(path: str, flags: int) -> int:
        if not missed:
            missed.append(Path(path))
            raise FileNotFoundError
        return os.open(path, flags)

    monkeypatch.setattr("hubcache.workers.remote.os", SimpleNamespace(open=late, O_RDONLY=os.O_RDONLY))
    assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == DATA
    assert missed
    assert requests(pair) == 1
    assert hub.count(kind="cdn", method="GET") == 1
    await pair.cache.engine.close()
    assert len((tmp_path / "access").read_text().splitlines()) == 1


async def test_store_that_fails_in_the_middle_costs_the_client_nothing(
    pair: Pair, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1_000_000))
    answer = await pair.get(f"/v2/{REPO}/blobs/{digest}")
    assert answer.source is not None
    first = await answer.source.read()
    fill = pair.cache.engine.fills.get(next(iter(pair.cache.engine.fills._running)))
    assert fill is not None
    assert fill.staged is not None
    monkeypatch.setattr("os.pwrite", _no_space)
    hub.faults.remove(fault)
    rest = await read(answer)
    assert first + rest == DATA


def _no_space(*_: object) -> int:
    raise OSError(28, "No space left on device")


async def test_token_request_is_answered_when_its_body_is_there(pair: Pair, hub: Hub) -> None:
    hub.user("alice", "secret")
    plain = pair.cache.request(Door.PROXY, "POST", "/token", authorization=basic("alice", "secret"))
    request = type(plain)(**{name: getattr(plain, name) for name in plain.__slots__} | {"for_token": True})
    assert await pair.remote.answer(request) is None


async def test_push_is_forwarded_and_what_it_moved_is_asked_anew(pair: Pair, hub: Hub) -> None:
    hub.image(REPO, "1", [b"old"])
    await pair.get(f"/v2/{REPO}/manifests/1")
    request = pair.cache.request(Door.PROXY, "PUT", f"/v2/{REPO}/manifests/1", authorization="Bearer own")
    outcome = await pair.remote.answer(request)
    assert outcome == Forward("Bearer own", (REPO, "1"), "manifest")
    new = hub.image(REPO, "1", [b"new"])
    await pair.remote.moved(request.registry, (REPO, "1"))
    assert (await pair.get(f"/v2/{REPO}/manifests/1")).body == new.manifest


async def test_answer_of_a_moment_ago_is_given_again_and_counted(
    pair: Pair, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubcache.workers.repeats.SECONDS", 60.0)
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
            patch.setattr(pair.remote, "_ask_owner", None)
            repeated = [await pair.get(path) for _ in range(3)]
        assert repeated == [kept] * 3
        assert kept.body

        def told(labels: dict[str, str] = labels, expected: float = before + 3) -> bool:
            return engine.metrics.registry.get_sample_value("hubcache_requests_total", labels) == expected

        await until(told)


async def test_answer_is_not_given_again_after_the_content_was_removed(pair: Pair, hub: Hub) -> None:
    """By fetches: a blob that is in the store by the time that the worker looks for its staged file is a hit."""
    path = f"/v2/{REPO}/blobs/{hub.blob(REPO, b'layer')}"
    for _ in range(3):
        assert await read(await pair.get(path)) == b"layer"
        await pair.settled()
    assert hub.count(kind="cdn", method="GET") == 1
    await pair.cache.engine.store.remove(Digest.of(b"layer"))
    assert await read(await pair.get(path)) == b"layer"
    assert hub.count(kind="cdn", method="GET") == 2


async def test_what_was_repeated_last_is_counted_before_the_end(hub: Hub, tmp_path: Path) -> None:
    hub.image(REPO, "1", [b"layer"])
    async with running(hub, tmp_path / "store") as cache:
        async with paired(cache, tmp_path) as pair:
            for _ in range(5):
                await pair.get(f"/v2/{REPO}/manifests/1")
        assert requests(pair) == 5


async def test_what_was_sent_is_counted_by_the_owner(pair: Pair) -> None:
    pair.remote._sent("store", 100)
    pair.remote._sent("store", 23)
    text = 'hubcache_sent_bytes_total{source="store"} 123.0'
    await until(lambda: text in pair.cache.engine.metrics.render().decode())


async def test_defect_in_the_owner_is_an_error_and_no_hang(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pair.cache.engine.service, "answer", broken)
    async with asyncio.timeout(5):
        assert (await pair.get(f"/v2/{REPO}/manifests/1")).status == 503


async def test_worker_notices_that_its_owner_is_gone(hub: Hub, tmp_path: Path) -> None:
    lost = asyncio.Event()
    gone: list[asyncio.StreamWriter] = []

    async def leave(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gone.append(writer)

    server = await asyncio.start_unix_server(leave, tmp_path / "owner")
    Epoch.create(tmp_path / f"owner{EPOCH}")
    remote = await Remote.connect(str(tmp_path / "owner"), lost.set)
    async with running(hub, tmp_path / "store") as cache:
        asking = asyncio.ensure_future(remote.answer(cache.request(Door.MIRROR, "GET", "/v2/")))
        await until(lambda: gone)
        gone[0].close()
        async with asyncio.timeout(5):
            answer = await asking
            await lost.wait()
    assert isinstance(answer, Answer)
    assert answer.status == 503
    await remote.close()
    server.close()


async def test_worker_that_does_not_understand_its_owner_ends_and_says_so(
    pair: Pair, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair.remote, "_hear", lambda *_: 1 / 0)
    async with asyncio.timeout(5):
        await pair.get("/v2/")  # whatever waits for a frame already has found the method
        assert (await pair.get(f"/v2/{REPO}/manifests/1")).status == 503
        await pair.lost.wait()
    await pair.remote.close()
    assert "does not understand its owner" in caplog.text


async def test_worker_that_dies_releases_what_it_held(hub: Hub, tmp_path: Path) -> None:
    async with running(hub, tmp_path / "store") as cache:
        digest = hub.blob(REPO, DATA)
        async with paired(cache, tmp_path) as pair:
            await read(await pair.get(f"/v2/{REPO}/blobs/{digest}"))
            await pair.settled()
            answer = await pair.get(f"/v2/{REPO}/blobs/{digest}")
            assert answer.source is not None
            await answer.source.read()
            assert cache.engine.store.ledger.in_use
            assert pair.workers == [1]
        assert pair.workers == [1, 0]
        assert not cache.engine.store.ledger.in_use
        await answer.source.close()


async def test_blob_that_the_worker_cannot_open_is_an_error_and_is_released(
    pair: Pair, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, DATA)
    assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == DATA
    await pair.settled()

    def fails(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("hubcache.workers.remote.os", SimpleNamespace(open=fails, O_RDONLY=os.O_RDONLY))
        assert (await pair.get(f"/v2/{REPO}/blobs/{digest}")).status == 503
    await until(lambda: not pair.cache.engine.store.ledger.in_use)
    assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == DATA


async def test_source_that_is_being_closed_when_the_worker_ends_is_closed() -> None:
    """It may be waiting for its reader; what it holds would else be held for ever."""
    closed = asyncio.Event()

    class Slow:
        origin, finished = "upstream", False

        async def read(self) -> bytes:
            try:
                return await asyncio.Future()
            finally:
                await asyncio.sleep(0)

        async def close(self) -> None:
            closed.set()

    conversation = _Conversation(Any, SimpleNamespace(write=lambda _: None))
    conversation._sources[1] = Slow()
    conversation.hear(["read", 1], b"")
    await asyncio.sleep(0)
    conversation.hear(["close", 1], b"")
    await asyncio.sleep(0)
    await conversation.close()
    assert closed.is_set()
