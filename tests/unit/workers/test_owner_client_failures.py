"""Failures between a worker and its owner: files, clients or processes that disappear, and defects of either."""

import asyncio
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.oci.errors import HubcacheError
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.workers.epoch import Epoch
from hubcache.workers.owner_client import OwnerClient
from hubcache.workers.owner_server import WorkerConnection
from support.engine import read, running
from support.standin import Fault, Hub
from support.users import until
from support.workers import DATA, REPO, EngineWithWorker, connected_worker, engine_with_worker_fixture, requests

pair = engine_with_worker_fixture()


async def test_defect_in_progress_reports_ends_the_readers_bodies(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(WorkerConnection, "_report_progress", broken)
    hub.faults.add(Fault(kind="cdn", pause_after=1_000_000))
    answer = await pair.get(f"/v2/{REPO}/blobs/{hub.blob(REPO, DATA)}")
    with pytest.raises(HubcacheError, match="internal"):
        await asyncio.wait_for(read(answer), 10)
    hub.faults.clear()
    assert pair.remote._fills == {}


async def test_answer_that_arrives_as_its_request_is_cancelled_is_released(pair: EngineWithWorker, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    receive = pair.remote._receive
    asking: asyncio.Task[Answer] | None = None

    def give_up(head: list[Any], payload: bytes) -> None:
        receive(head, payload)
        if head[0] == "answered" and asking is not None:
            asking.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair.remote, "_receive", give_up)
        await pair.get("/v2/")  # a call that already waits for a frame uses the original method
        asking = asyncio.create_task(pair.get(f"/v2/{REPO}/blobs/{digest}"))
        with pytest.raises(asyncio.CancelledError):
            await asking
    await pair.settled()
    await until(lambda: not pair.cache.engine.store.usage.in_use)
    assert pair.remote._opening == {}


async def test_wrong_bytes_cut_the_body_short(pair: EngineWithWorker, hub: Hub) -> None:
    digest = hub.blob(REPO, DATA)
    hub.faults.add(Fault(kind="cdn", corrupt_at=len(DATA) - 1, pause_after=1_000_000, times=1))
    answer = await pair.get(f"/v2/{REPO}/blobs/{digest}")
    hub.faults.clear()
    with pytest.raises(HubcacheError):
        await read(answer)


async def test_body_is_complete_when_its_file_is_always_removed_before_it_is_opened(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, DATA)

    def gone(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr("hubcache.workers.owner_client.open_regular", gone)
    assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == DATA
    assert requests(pair) == 1


@pytest.mark.parametrize("data", [DATA, b"small"], ids=["large", "small"])
async def test_request_is_repeated_and_counted_once_when_its_file_was_removed(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes
) -> None:
    pair.cache.apply(access_log=tmp_path / "access")
    digest = hub.blob(REPO, data)
    # The fill runs until both attempts were made: its end would remove the file's first name once more.
    paused = hub.faults.add(Fault(kind="cdn", pause_after=1))
    missed: list[Path] = []

    def late(path: Path) -> int:
        if not missed:
            missed.append(path)
            raise FileNotFoundError
        return os.open(path, os.O_RDONLY)

    monkeypatch.setattr("hubcache.workers.owner_client.open_regular", late)
    answer = await pair.get(f"/v2/{REPO}/blobs/{digest}")
    hub.faults.remove(paused)
    assert answer.result is Result.MISS, "it was fetched for this request"
    assert await read(answer) == data
    assert missed
    assert requests(pair) == 1
    assert hub.count(kind="cdn", method="GET") == 1
    await pair.cache.engine.close()
    assert len((tmp_path / "access").read_text().splitlines()) == 1


@pytest.mark.parametrize("condition", [{}, {"range": "bytes=5-", "if_range": '"another"'}])
async def test_body_is_complete_when_the_store_fails_during_a_fill(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch, condition: dict[str, str]
) -> None:
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", pause_after=1_000_000))
    answer = await pair.get(f"/v2/{REPO}/blobs/{digest}", **condition)
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


async def test_defect_in_the_owner_is_an_error_answer(pair: EngineWithWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pair.cache.engine.service, "answer", broken)
    async with asyncio.timeout(5):
        assert (await pair.get(f"/v2/{REPO}/manifests/1")).status == 503


async def test_worker_notices_that_its_owner_has_ended(hub: Hub, tmp_path: Path) -> None:
    lost = asyncio.Event()
    owner, theirs = socket.socketpair()
    epoch = Epoch.create()
    remote = await OwnerClient.connect(theirs, epoch, lost.set)
    async with running(hub, tmp_path / "store") as cache:
        asking = asyncio.ensure_future(remote.answer(cache.request(Listener.MIRROR, "GET", "/v2/")))
        await until(lambda: remote._waiting)
        owner.close()
        async with asyncio.timeout(5):
            answer = await asking
            await lost.wait()
    assert isinstance(answer, Answer)
    assert answer.status == 503
    await remote.close()
    epoch.close()


async def test_worker_that_cannot_handle_a_message_logs_it_and_ends(
    pair: EngineWithWorker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair.remote, "_receive", lambda *_: 1 / 0)
    async with asyncio.timeout(5):
        await pair.get("/v2/")  # a call that already waits for a frame uses the original method
        assert (await pair.get(f"/v2/{REPO}/manifests/1")).status == 503
        await pair.lost.wait()
    await pair.remote.close()
    assert "failed to handle a message of its owner" in caplog.text


async def test_blobs_of_a_worker_that_ends_are_released(hub: Hub, tmp_path: Path) -> None:
    async with running(hub, tmp_path / "store") as cache:
        digest = hub.blob(REPO, DATA)
        async with connected_worker(cache) as pair:
            await read(await pair.get(f"/v2/{REPO}/blobs/{digest}"))
            await pair.settled()
            answer = await pair.get(f"/v2/{REPO}/blobs/{digest}")
            assert answer.source is not None
            await answer.source.read()
            assert cache.engine.store.usage.in_use
            assert pair.workers == [1]
        assert pair.workers == [1, 0]
        assert not cache.engine.store.usage.in_use
        await answer.source.close()


async def test_blob_that_a_worker_cannot_open_is_an_error_and_is_released(
    pair: EngineWithWorker, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, DATA)
    assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == DATA
    await pair.settled()

    def fails(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("hubcache.workers.owner_client.open_regular", fails)
        assert (await pair.get(f"/v2/{REPO}/blobs/{digest}")).status == 503
    await until(lambda: not pair.cache.engine.store.usage.in_use)
    assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == DATA


async def test_source_is_closed_when_the_worker_ends_during_its_close() -> None:
    """It may be waiting for its reader; otherwise its blob would stay open for ever."""
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

    responder: Any = SimpleNamespace(request_ended=None)
    conversation = WorkerConnection(responder, SimpleNamespace(write=lambda _: None))
    conversation._sources[1] = Slow()
    conversation.receive(["read", 1], b"")
    await asyncio.sleep(0)
    conversation.receive(["close", 1], b"")
    await asyncio.sleep(0)
    await conversation.close()
    assert closed.is_set()
