"""Downloads in threads: bytes after a response, kept connections, time-outs, cancellation and refused addresses."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from hubcache.transfer import download_session
from hubcache.transfer.download_session import DownloadSession
from support.served import answering
from support.standin import random_bytes
from support.standin import tls as standin_tls
from support.users import until
from yarl import URL

SECONDS = 60.0
"""Time-outs that a busy machine does not exceed."""
SHORT = 0.3
"""Longest wait for a server that is silent."""
type Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def opened(tls: ssl.SSLContext | None = None, progress: float = SECONDS) -> AsyncIterator[DownloadSession]:
    session = DownloadSession(tls or ssl.create_default_context(), "hubcache-test", SECONDS, progress)
    yield session
    session.close()


@pytest.fixture
async def session() -> AsyncIterator[DownloadSession]:
    async with opened() as one:
        yield one


@asynccontextmanager
async def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[URL]:
    """A server that calls `serve` for each connection, after the head of its first request."""

    async def serve_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve_request, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    try:
        yield URL(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/x")
    finally:
        server.close()


async def fetch(session: DownloadSession, url: URL) -> tuple[int, bytes]:
    """Return status and body."""
    response, received = await session.get(url, {}), bytearray()
    try:
        if response.status == 200:
            while not await response.receive(lambda data: bool(received.extend(data))):
                pass
        else:
            received += b"".join([part async for part in response.iter_any()])
    finally:
        response.release()
    return response.status, bytes(received)


# -- responses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdefgh", (200, b"abc")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc\r\n\r\n", (200, b"abc")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", (200, b"")),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n<html>", (404, b"")),
        (b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /y\r\nContent-Length: 2\r\n\r\nhi", (307, b"hi")),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nmore", (200, b"abcde")),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", (200, b"a")),
    ],
)
async def test_body_ends_where_the_response_says(
    session: DownloadSession, answer: bytes, expected: tuple[int, bytes]
) -> None:
    async with answering(answer) as url:
        for _ in range(3):
            assert await fetch(session, url) == expected


async def test_unrequested_response_is_not_used_for_the_next_request(session: DownloadSession) -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine"
    async with answering(one + one.replace(b"mine", b"evil")) as url:
        for _ in range(4):
            assert await fetch(session, url) == (200, b"mine")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/9\r\n\r\n",
        b"\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200,
        b"HTTP/1.1 102 Processing\r\n\r\n" * 100,
    ],
)
async def test_malformed_response_is_a_client_error(session: DownloadSession, answer: bytes) -> None:
    async with answering(answer) as url:
        with pytest.raises(aiohttp.ClientError):
            await session.get(url, {})


@pytest.mark.parametrize("status", [307, 404])
async def test_redirect_or_error_whose_body_breaks_off_is_returned(session: DownloadSession, status: int) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status} x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab".encode())

    async with serving(serve) as url:
        for _ in range(2):
            assert await fetch(session, url) == (status, b"")


async def test_field_values_are_one_line_of_utf_8(session: DownloadSession) -> None:
    head = "HTTP/1.1 307 x\r\nLocation: /\u00fc\r\nWWW-Authenticate: Bearer\r\n \t realm=a\r\nContent-Length: 0\r\n\r\n"
    async with answering(head.encode()) as url:
        response = await session.get(url, {})
        response.release()
        assert response.headers["Location"] == "/\u00fc"
        assert response.headers["WWW-Authenticate"] == "Bearer realm=a"


async def test_host_with_a_trailing_dot_has_the_certificate_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = standin_tls.make(tmp_path, ["hub.test"])
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo
    monkeypatch.setattr(loop, "getaddrinfo", lambda _, port, **more: resolve("127.0.0.1", port, **more))
    serve, _ = counting(ANSWER)
    async with (
        serving(serve, context) as url,
        opened(ssl.create_default_context(cafile=str(authority))) as session,
    ):
        assert await fetch(session, url.with_host("hub.test.")) == (200, b"abc")


async def test_chunked_body_that_breaks_off_is_an_error(session: DownloadSession) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc")

    async with serving(serve) as url:
        with pytest.raises(aiohttp.ClientPayloadError):
            await fetch(session, url)


async def test_bytes_are_passed_on_as_they_arrive(session: DownloadSession) -> None:
    received, go_on = bytearray(), asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\nfirst")
        await go_on.wait()
        writer.write(bytes(199_995))
        await writer.drain()

    async with serving(serve) as url:
        response = await session.get(url, {})
        receiving = asyncio.create_task(response.receive(lambda data: received.extend(data) is None))
        await until(lambda: bytes(received) == b"first")
        go_on.set()
        assert await receiving
        assert len(received) == 200_000
        response.release()


# -- kept connections -----------------------------------------------------------------------------------------------


def counting(answer: bytes, close: bool = False) -> tuple[Serve, list[int]]:
    """Return a server's function that answers each request on a connection, and the numbers of these requests."""
    numbers: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        numbers.append(0)
        mine = len(numbers) - 1
        while True:
            numbers[mine] += 1
            writer.write(answer)
            if close:
                return
            await reader.readuntil(b"\r\n\r\n")

    return serve, numbers


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize("size", [3, 1_000_000])
@pytest.mark.parametrize("tls", [False, True])
async def test_connection_is_used_again(tls: bool, size: int, tmp_path: Path) -> None:
    body = random_bytes(size)
    authority, context = standin_tls.make(tmp_path, ["127.0.0.1"])
    serve, numbers = counting(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, body))
    async with (
        serving(serve, context if tls else None) as url,
        opened(ssl.create_default_context(cafile=str(authority))) as session,
    ):
        for _ in range(3):
            assert await fetch(session, url) == (200, body)
        assert numbers == [3]


async def test_connection_that_the_server_closed_is_replaced(session: DownloadSession) -> None:
    serve, numbers = counting(ANSWER, close=True)
    async with serving(serve) as url:
        for _ in range(3):
            assert await fetch(session, url) == (200, b"abc")
        assert numbers == [1, 1, 1]


async def test_connection_is_not_used_again_before_its_body_was_read(session: DownloadSession) -> None:
    serve, numbers = counting(ANSWER)
    async with serving(serve) as url:
        (await session.get(url, {})).release()
        assert await fetch(session, url) == (200, b"abc")
        assert numbers == [1, 1]


async def test_unused_connection_is_closed(session: DownloadSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_session, "_IDLE_SECONDS", 0.05)
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER)
        await reader.read()
        ended.set()

    async with serving(serve) as url:
        await fetch(session, url)
        assert session._idle
        await asyncio.wait_for(ended.wait(), 10)
        assert not session._idle, "hosts that are not used any more must not be remembered"


# -- time-outs and cancellation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na"])
async def test_silent_server_is_a_time_out(sent: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await reader.read()

    async with serving(serve) as url, opened(progress=SHORT) as session:
        with pytest.raises(TimeoutError):
            await fetch(session, url)


async def test_cancelled_download_ends_its_thread_and_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na")
        await reader.read()
        ended.set()

    received = asyncio.Event()
    loop = asyncio.get_running_loop()

    def consume(_: memoryview) -> bool:
        loop.call_soon_threadsafe(received.set)
        return True

    session = DownloadSession(ssl.create_default_context(), "hubcache-test", 60, 60)
    async with serving(serve) as url:
        response = await session.get(url, {})
        task = asyncio.create_task(response.receive(consume))
        await received.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        response.release()
        await asyncio.wait_for(ended.wait(), 10)
    session.close()


async def test_thread_is_waited_for_when_its_download_is_cancelled_twice(session: DownloadSession) -> None:
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def consume(_: memoryview) -> bool:
        loop.call_soon_threadsafe(begun.set)
        return may_end.wait(60)

    async with answering(ANSWER) as url:
        response = await session.get(url, {})
        task = asyncio.create_task(response.receive(consume))
        await begun.wait()
        for _ in range(2):
            task.cancel()
            assert not (await asyncio.wait([task], timeout=0.02))[0]
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        response.release()


async def test_error_of_the_consumer_ends_the_download(session: DownloadSession) -> None:
    def refuse(_: memoryview) -> bool:
        raise ArithmeticError

    async with answering(ANSWER) as url:
        response = await session.get(url, {})
        with pytest.raises(ArithmeticError):
            await response.receive(refuse)
        response.release()
        assert await fetch(session, url) == (200, b"abc")


# -- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_guarded_download_connects_to_no_local_address_in_any_spelling(
    session: DownloadSession, host: str
) -> None:
    async with answering(ANSWER) as url:
        for named_by_client in (False, True):
            with pytest.raises(aiohttp.ClientError):
                await session.get(URL(f"http://{host}:{url.port}/"), {}, guarded=True, named_by_client=named_by_client)
