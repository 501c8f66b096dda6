"""The control socket: who can connect, stale and deleted sockets, and errors as JSON."""

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from hubcache.control import socket_file
from hubcache.control.errors import NotKnown, Refused
from hubcache.control.http import MAX_BODY, json_answer, read_fields, stream_events, text_field
from hubcache.control.server import ControlServer
from hubcache.control.socket_file import SOCKET_NAME, SocketFile, short_path
from hubcache.oci.errors import NotStored, StorageError
from hubcache.store.store import Store
from support.control import call
from support.stores import opened_store


async def _echo(request: web.Request) -> web.Response:
    return await json_answer({"text": text_field(await read_fields(request, "text"), "text")})


async def _fail(request: web.Request) -> web.Response:
    raise {"known": NotKnown, "refused": Refused, "store": StorageError, "full": NotStored}[request.query["how"]]("why")


async def _long(_: web.Request) -> web.Response:
    return await json_answer(LONG)


async def _stream(request: web.Request) -> web.StreamResponse:
    async def events() -> AsyncGenerator[dict[str, int]]:
        if "refused" in request.query:
            raise Refused("why")
        yield {"number": 1}
        raise StorageError("the disk is full")

    return await stream_events(request, events())


async def _endless(request: web.Request) -> web.StreamResponse:
    async def events() -> AsyncGenerator[dict[str, int]]:
        try:
            yield {"number": 1}
            await asyncio.Event().wait()
        finally:
            ENDED.append(request.path)

    return await stream_events(request, events())


ENDED: list[str] = []
"""Streams that have ended."""

LONG = {"items": [{"number": number, "text": "ä"} for number in range(500)], "more": [], "last": None}

ROUTES = [
    web.get("/endless", _endless),
    web.get("/long", _long),
    web.post("/echo", _echo),
    web.get("/fail", _fail, allow_head=False),
    web.get("/stream", _stream),
]


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[ControlServer]:
    """Serve `ROUTES` at the socket of an open store."""
    async with opened_store(directory) as store:
        server = ControlServer(store, ROUTES)
        try:
            await server.keep_open()
            yield server
        finally:
            await server.close()


async def test_only_the_owner_can_connect(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        async with serving(tmp_path):
            assert stat.S_IMODE((tmp_path / SOCKET_NAME).stat().st_mode) == 0o600
    finally:
        os.umask(mask)
    assert not (tmp_path / SOCKET_NAME).exists()


async def test_no_connection_is_accepted_before_the_mode_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[bool] = []
    chmod = Path.chmod

    def connect_first(path: Path, mode: int) -> None:
        with socket.socket(socket.AF_UNIX) as other, pytest.raises(ConnectionRefusedError):
            other.connect(str(path))
        refused.append(True)
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", connect_first)
    SocketFile(tmp_path).open().close()
    assert refused == [True]


@pytest.mark.parametrize("length", [40, 98, 99, 100, 101, 107, 108, 200])
async def test_directory_with_a_long_path_can_be_used(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    base = tmp_path_factory.mktemp("s")
    directory = base / ("d" * max(1, length - len(str(base)) - 1 - len(SOCKET_NAME) - 1))
    async with serving(directory):
        assert await call(directory, "POST", "/echo", {"text": "x"}) == (200, {"text": "x"})


async def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    SocketFile(tmp_path).open().close()  # as after kill -9: the file stays, and connections are refused
    async with serving(tmp_path):
        assert await call(tmp_path, "POST", "/echo", {"text": "x"}) == (200, {"text": "x"})


async def test_deleted_socket_is_opened_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        (tmp_path / SOCKET_NAME).unlink()
        await server.keep_open()
        assert await call(tmp_path, "POST", "/echo", {"text": "x"}) == (200, {"text": "x"})


async def test_store_that_is_not_open_has_no_socket(tmp_path: Path) -> None:
    store = Store(tmp_path, 1 << 20)
    server = ControlServer(store, ROUTES)
    await server.keep_open()
    assert not (tmp_path / SOCKET_NAME).exists()
    await server.close()


async def test_socket_of_another_process_is_not_removed(tmp_path: Path) -> None:
    async with serving(tmp_path):
        (tmp_path / SOCKET_NAME).unlink()
        SocketFile(tmp_path).open().close()
    assert (tmp_path / SOCKET_NAME).exists()


async def test_directory_that_all_users_may_write_gets_no_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.chmod(tmp_path, 0o777)  # noqa: PTH101
    async with serving(tmp_path) as server:
        await server.keep_open()
        assert not (tmp_path / SOCKET_NAME).exists()
        [line] = [record.getMessage() for record in caplog.records]
        assert "chmod o-w" in line
        os.chmod(tmp_path, 0o700)  # noqa: PTH101
        await server.keep_open()
        assert (tmp_path / SOCKET_NAME).exists()


async def test_socket_that_cannot_be_created_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / SOCKET_NAME).mkdir()
    async with serving(tmp_path) as server:
        await server.keep_open()
        [line] = [record.getMessage() for record in caplog.records]
        assert SOCKET_NAME in line
        assert server.problem is not None


@pytest.mark.parametrize(
    ("how", "status"), [("known", 404), ("refused", 409), ("store", 503), ("full", 507)], ids=lambda value: str(value)
)
async def test_errors_are_sentences_in_json(tmp_path: Path, how: str, status: int) -> None:
    async with serving(tmp_path):
        assert await call(tmp_path, "GET", f"/fail?how={how}") == (status, {"error": "why"})


async def test_requests_outside_the_api_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path):
        for method, path, expected in [("GET", "/nothing", 404), ("DELETE", "/echo", 405), ("GET", "/echo", 405)]:
            status, answer = await call(tmp_path, method, path)
            assert status == expected
            assert set(answer) == {"error"}


@pytest.mark.parametrize("body", [[], "text", {}, {"text": 1}, {"text": ""}, {"text": "x", "other": 1}])
async def test_malformed_fields_are_refused(tmp_path: Path, body: object) -> None:
    async with serving(tmp_path):
        status, answer = await call(tmp_path, "POST", "/echo", body)
        assert status == 400
        assert set(answer) == {"error"}


async def test_body_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path):
        status, answer = await call(tmp_path, "POST", "/echo", {"text": "x" * MAX_BODY})
        assert status == 413
        assert set(answer) == {"error"}


async def test_error_during_a_stream_is_its_last_event(tmp_path: Path) -> None:
    async with serving(tmp_path):
        status, events = await call(tmp_path, "GET", "/stream")
        assert status == 200
        assert events == [{"number": 1}, {"done": True, "error": "the disk is full"}]


async def test_long_list_is_answered_as_json(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert await call(tmp_path, "GET", "/long") == (200, LONG)


async def test_error_before_a_stream_has_its_own_status(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert await call(tmp_path, "GET", "/stream?refused=1") == (409, {"error": "why"})


async def test_close_ends_running_commands(tmp_path: Path) -> None:
    ENDED.clear()
    async with serving(tmp_path) as server:
        with short_path(tmp_path / SOCKET_NAME) as address:
            reader, writer = await asyncio.open_unix_connection(address)
        try:
            writer.write(b"GET /endless HTTP/1.1\r\nHost: hubcache\r\n\r\n")
            await reader.readuntil(b'"number": 1')
            async with asyncio.timeout(30):
                await server.close()
            assert ENDED == ["/endless"]
        finally:
            writer.close()
            await writer.wait_closed()


async def test_full_disk_is_logged_and_the_socket_is_opened_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class OnFullDisk(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(socket_file.socket, "socket", OnFullDisk)
        async with opened_store(tmp_path) as store:
            server = ControlServer(store, ROUTES)
            await server.keep_open()
            await server.keep_open()
            assert [record.getMessage().count("No space left on device") for record in caplog.records] == [1]
            patch.undo()
            await server.keep_open()
            assert await call(tmp_path, "POST", "/echo", {"text": "x"}) == (200, {"text": "x"})
            await server.close()
