"""Server-sent events of the status: one snapshot for all listeners, while somebody listens, until the end."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from hubcache.operate import events
from hubcache.operate.events import MAX_LISTENERS, Events
from support.ports import free_port
from support.users import until


@dataclass
class Server:
    """A server of events, and how often it took a snapshot."""

    url: str = ""
    taken: int = 0
    http: aiohttp.ClientSession = field(default_factory=aiohttp.ClientSession)
    answers: list[aiohttp.ClientResponse] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.events = Events(self._snapshot, seconds=0.01)
        app = web.Application()
        app.router.add_get("/events", self.events.serve)
        app.on_shutdown.append(self._close)
        self.runner = web.AppRunner(app)

    def _snapshot(self) -> bytes:
        self.taken += 1
        return b"%d" % self.taken

    async def _close(self, _: web.Application) -> None:
        self.events.close()

    async def listen(self) -> aiohttp.ClientResponse:
        answer = await self.http.get(self.url)
        assert answer.status == 200
        self.answers.append(answer)
        return answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    one = Server()
    await one.runner.setup()
    port = free_port()
    await web.TCPSite(one.runner, "127.0.0.1", port).start()
    one.url = f"http://127.0.0.1:{port}/events"
    yield one
    for answer in one.answers:
        answer.close()
    await one.http.close()
    await one.runner.cleanup()


async def numbers(answer: aiohttp.ClientResponse, count: int) -> list[int]:
    """Return the next snapshots that a listener receives."""
    found: list[int] = []
    while len(found) < count:
        line = await answer.content.readline()
        assert line, "the stream ended"
        if line.startswith(b"data: "):
            found.append(int(line.removeprefix(b"data: ")))
    return found


async def test_stream_has_the_form_of_server_sent_events(server: Server) -> None:
    answer = await server.listen()
    assert (answer.content_type, answer.headers["Cache-Control"]) == ("text/event-stream", "no-store")
    assert await answer.content.readuntil(b"\n\n") == b"retry: 3000\ndata: 1\n\n"
    assert (await answer.content.readuntil(b"\n\n")).startswith(b"data: ")


async def test_listeners_share_the_snapshots(server: Server) -> None:
    answers = [await server.listen() for _ in range(5)]
    seen = [set(await numbers(answer, 20)) for answer in answers]
    assert len(set.union(*seen)) < 5 * 20, "each listener has its own"
    assert server.taken >= 20


async def test_no_snapshot_is_taken_while_nobody_listens(server: Server) -> None:
    for _ in range(2):
        answer = await server.listen()
        await numbers(answer, 2)
        answer.close()
        await until(lambda: not server.events._listeners)
        assert server.events._task is None


async def test_streams_end_when_a_snapshot_fails_and_later_ones_work(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream that stayed open in silence would keep the page from connecting again."""
    answer = await server.listen()
    await numbers(answer, 1)
    with monkeypatch.context() as patched:
        patched.setattr(server.events, "_snapshot", lambda: b"%d" % (1 // 0))
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()
    assert "ZeroDivisionError" in caplog.text
    await numbers(await server.listen(), 3)


async def test_number_of_listeners_is_bounded(server: Server) -> None:
    answers = [await server.listen() for _ in range(MAX_LISTENERS)]
    async with server.http.get(server.url) as refused:
        assert refused.status == 503
    answers[0].close()
    await until(lambda: server.events._listeners < MAX_LISTENERS)
    await numbers(await server.listen(), 2)


async def test_streams_end_in_order_when_the_server_stops(server: Server) -> None:
    answers = [await server.listen() for _ in range(3)]
    for answer in answers:
        await numbers(answer, 1)
    await server.runner.cleanup()
    for answer in answers:
        await answer.content.read()  # to the end of the last chunk, else this raises
    assert server.events._listeners == 0


async def test_listener_is_refused_after_the_end(server: Server) -> None:
    server.events.close()
    async with server.http.get(server.url) as answer:
        assert answer.status == 503


async def test_listener_that_reads_nothing_is_disconnected(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "WRITE_SECONDS", 0.05)
    server.events._snapshot = lambda: b"x" * (8 << 20)  # more than the buffers of a connection
    await server.listen()
    await until(lambda: server.events._listeners == 0)
