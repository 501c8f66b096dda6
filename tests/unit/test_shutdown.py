"""An orderly stop: how it waits, what it logs, and what it cancels at its start."""

import asyncio
import logging
import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache import shutdown
from hubcache.mitm import listeners
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Answer, Listener
from hubcache.shutdown import Shutdown
from support.engine import running
from support.standin import Fault, Hub, random_bytes
from support.users import until

REPO = "library/app"
DATA = random_bytes(3_000_000)


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "hubcache")
    return lambda: [message.removeprefix("hubcache: stopping: ") for message in caplog.messages]


async def test_number_of_downloads_is_logged_throughout_the_wait(
    log_lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(shutdown, "_LOG_SECONDS", 0.0)
    counts = [3, 2, 1, 0]

    def count() -> int:
        return counts.pop(0) if len(counts) > 1 else counts[0]

    async with asyncio.timeout(30):
        await Shutdown().wait_for_downloads(count, lambda number: not number, 60.0)
    assert log_lines() == [
        "3 downloads are running, for at most 60 seconds",
        "2 downloads are running",
        "1 downloads are running",
        "0 downloads were cut off",
    ]


async def test_wait_ends_after_its_time(log_lines: Any) -> None:
    async with asyncio.timeout(30):
        await Shutdown().wait_for_downloads(lambda: 2, lambda number: not number, 0.05)
    assert log_lines()[-1] == "2 downloads were cut off"


async def test_wait_of_zero_seconds_ends_at_once(log_lines: Any) -> None:
    async with asyncio.timeout(30):
        await Shutdown().wait_for_downloads(lambda: 2, lambda number: not number, 0.0)
    assert log_lines()[-1] == "2 downloads were cut off"


async def test_wait_can_be_ended() -> None:
    stop = Shutdown()
    waiting = asyncio.create_task(stop.wait_for_downloads(lambda: 1, lambda number: not number, 600.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    stop.end_wait()
    async with asyncio.timeout(30):
        await waiting


async def test_fill_without_readers_is_cancelled_and_one_with_a_reader_is_not(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubcache.transfer.fills._JOIN_SECONDS", 0.0)
    read, unread = (hub.blob(REPO, DATA + name) for name in (b"1", b"2"))
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1_000_000))
    async with running(hub, tmp_path / "store") as cache:
        sources = []
        for digest in (read, unread):
            answer = await cache.engine.answer(cache.request(Listener.MIRROR, "GET", f"/v2/{REPO}/blobs/{digest}"))
            assert isinstance(answer, Answer)
            assert answer.source is not None
            sources.append(answer.source)
        await sources[1].close()
        cache.engine.cancel_unread()
        await until(lambda: cache.engine.fills.get(Digest.parse(unread)) is None)
        hub.faults.remove(fault)
        body = b""
        while not sources[0].finished:
            body += await sources[0].read()
        await sources[0].close()
        assert body == DATA + b"1"
        await until(lambda: cache.engine.store.has(Digest.parse(read)))
        assert not cache.engine.store.has(Digest.parse(unread))


async def test_fill_that_has_not_opened_is_waited_for(hub: Hub, tmp_path: Path) -> None:
    digest = hub.blob(REPO, DATA)
    fault = hub.faults.add(Fault(kind="cdn", method="GET", delay=0.3))
    async with running(hub, tmp_path / "store") as cache:
        asking = asyncio.create_task(cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{digest}"))
        await until(lambda: fault.hits)
        cache.engine.cancel_unread()
        assert await asking == (200, DATA)


async def test_request_after_the_stop_is_an_error_and_raises_nothing(hub: Hub, tmp_path: Path) -> None:
    """Its upstream cannot be reached any more."""
    async with running(hub, tmp_path / "store") as cache:
        await cache.engine.close()
        status, _ = await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1")
        assert status == 503


async def test_closed_listener_does_not_react_to_clients_that_wait_for_other_processes() -> None:
    """Otherwise such events would keep a worker busy that serves its last downloads."""
    listening = socket.create_server(("127.0.0.1", 0))
    loop: Any = asyncio.get_running_loop()
    listener = listeners._Listener(SimpleNamespace(handle_stream=None), listening.dup().detach())  # type: ignore[arg-type]
    await asyncio.sleep(0)
    listener.close()
    await until(lambda: listener._socket.fileno() < 0)
    client = socket.create_connection(listening.getsockname())
    with listening, client:
        assert loop._selector._selector.poll(0.1) == []


@pytest.mark.parametrize("error", [NotImplementedError(), RuntimeError()])
async def test_nothing_changes_where_the_event_loop_supports_no_signals(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", refuse)
    shutdown.on_signals((signal.SIGHUP,), lambda: None)
    Shutdown().end_wait_at_signal()
