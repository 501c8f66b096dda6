"""The body listener: every byte arrives once, at the right client only, and a body cut short never looks complete."""

import asyncio
import contextlib

import pytest
from hubcache.oci.errors import BadUpstream
from hubcache.transfer import body_listener
from hubcache.transfer.body_listener import StreamedBody
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bodies import ListenerHarness, Pieces, listener_fixture, wait_for

END = b"0\r\n\r\n"

harness = listener_fixture()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=20), max_size=8))
def test_body_arrives_unchanged_in_pieces_of_any_size(pieces: list[bytes]) -> None:
    async def run() -> None:
        harness = ListenerHarness()
        await harness.listener.start()
        source = Pieces(*pieces)
        path, streamed = harness.listener.register(source)
        assert await harness.receive(path, streamed) == (b"".join(pieces), True)
        assert harness.sent == [("store", len(piece)) for piece in pieces]
        assert harness.failed == []
        await wait_for(lambda: source.closed == 1)
        await harness.listener.close()
        assert source.closed == 1

    asyncio.run(run())


async def test_large_chunks_cross_the_loopback_connection_as_one_byte_each(harness: ListenerHarness) -> None:
    path, streamed = harness.listener.register(Pieces(b"x" * 500_000, b"y" * 500_000))
    reader, writer = await harness.request(path)
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(6) == b"1\r\nx\r\n"
    assert streamed.stream(b"x") == b"x" * 500_000
    assert await reader.read(1000) == b"1\r\nx\r\n" + END
    assert streamed.stream(b"x") == b"y" * 500_000
    writer.close()


async def test_next_chunk_is_offered_after_the_previous_one_was_taken(harness: ListenerHarness) -> None:
    source = Pieces(*(bytes([number]) for number in range(10)))
    path, streamed = harness.listener.register(source)
    reader, writer = await harness.request(path)
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(6) == b"1\r\nx\r\n"
    await asyncio.sleep(0.05)
    assert source.reads <= 2
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await reader.readexactly(1)
    assert streamed.stream(b"x") == b"\x00"
    assert await reader.readexactly(6) == b"1\r\nx\r\n"
    writer.close()


async def test_first_chunk_does_not_wait_for_the_second(harness: ListenerHarness) -> None:
    second = asyncio.Event()
    path, streamed = harness.listener.register(Pieces(b"first", second, b"second"))
    receiving = asyncio.ensure_future(harness.receive(path, streamed))
    await wait_for(lambda: harness.sent == [("store", 5)])
    second.set()
    assert await receiving == (b"firstsecond", True)


@pytest.mark.parametrize("before", [(), (b"one",), (b"one", b"two")])
async def test_failing_source_leaves_the_chunked_coding_unfinished(
    harness: ListenerHarness, before: tuple[bytes, ...]
) -> None:
    error = BadUpstream("content does not match its digest")
    source = Pieces(*before, error)
    path, streamed = harness.listener.register(source)
    body, complete = await harness.receive(path, streamed)
    assert not complete
    assert b"".join(before).startswith(body)
    assert harness.failed == [error]
    await wait_for(lambda: source.closed == 1)


async def test_request_with_an_unknown_path_gets_nothing(harness: ListenerHarness) -> None:
    source = Pieces(b"secret")
    path, _ = harness.listener.register(source)
    for wrong in ("/", "/x", path[:-1], path + "x", path.lower() + "?", "*"):
        reader, writer = await harness.request(wrong)
        assert await reader.read() == b""
        writer.close()
    assert (source.reads, source.closed) == (0, 0)


@pytest.mark.parametrize("request_text", [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\x00 \xff \xff\r\n\r\n", b"x" * 200_000])
async def test_malformed_request_gets_nothing_and_does_no_harm(harness: ListenerHarness, request_text: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.listener.port)
    writer.write(request_text)
    with contextlib.suppress(ConnectionError):  # the connection was closed before these bytes were read
        assert await reader.read() == b""
    writer.close()
    path, streamed = harness.listener.register(Pieces(b"fine"))
    assert await harness.receive(path, streamed) == (b"fine", True)


async def test_path_is_valid_once(harness: ListenerHarness) -> None:
    path, streamed = harness.listener.register(Pieces(b"secret"))
    assert await harness.receive(path, streamed) == (b"secret", True)
    reader, writer = await harness.request(path)
    assert await reader.read() == b""
    writer.close()


async def test_paths_are_long_and_unique(harness: ListenerHarness) -> None:
    paths = {harness.listener.register(Pieces())[0] for _ in range(100)}
    assert len(paths) == 100
    assert min(map(len, paths)) > 20


async def test_path_that_is_not_requested_expires_and_its_source_is_closed(
    harness: ListenerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_listener, "_PATH_SECONDS", 0.02)
    source = Pieces(b"secret")
    path, _ = harness.listener.register(source)
    await wait_for(lambda: source.closed == 1)
    reader, writer = await harness.request(path)
    assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("waiting", ["for the source", "for the client"])
async def test_disconnect_ends_the_body_and_closes_the_source(harness: ListenerHarness, waiting: str) -> None:
    source = Pieces(b"one", asyncio.Event() if waiting == "for the source" else b"two", b"three", b"four")
    path, _ = harness.listener.register(source)
    reader, writer = await harness.request(path)
    await reader.readuntil(b"x\r\n")
    writer.close()
    await wait_for(lambda: source.closed == 1)
    assert harness.failed == []


async def test_closing_the_listener_cuts_bodies_short_and_closes_all_sources(harness: ListenerHarness) -> None:
    waiting, running = Pieces(b"x"), Pieces(b"one", asyncio.Event(), b"two")
    harness.listener.register(waiting)
    path, streamed = harness.listener.register(running)
    receiving = asyncio.ensure_future(harness.receive(path, streamed))
    await wait_for(lambda: harness.sent != [])
    await harness.listener.close()
    assert await receiving == (b"one", False)
    assert (waiting.closed, running.closed) == (1, 1)
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", harness.listener.port)


async def test_concurrent_bodies_do_not_mix(harness: ListenerHarness) -> None:
    async def one(number: int) -> None:
        pieces = [f"{number}:{part};".encode() for part in range(20)]
        path, streamed = harness.listener.register(Pieces(*pieces))
        assert await harness.receive(path, streamed) == (b"".join(pieces), True)

    await asyncio.gather(*(one(number) for number in range(20)))


def test_stream_never_raises_and_returns_nothing_at_the_end() -> None:
    counted: list[tuple[str, int]] = []
    streamed = StreamedBody(Pieces(), lambda origin, count: counted.append((origin, count)))
    assert streamed.stream(b"") == b""
    assert counted == []
    assert streamed.stream(b"x") == b""
    streamed.offer(b"chunk")
    assert streamed.stream(b"x") == b"chunk"
    assert streamed.stream(b"x") == b""


async def test_body_of_a_client_that_disconnected_before_the_request_is_not_read(harness: ListenerHarness) -> None:
    """Its source is closed: the descriptor may now be that of another file."""
    source = Pieces(b"data")
    path, streamed = harness.listener.register(source)
    await streamed.close()
    assert await harness.receive(path, streamed) == (b"", False)
    assert (source.reads, source.closed) == (0, 1)
    assert (harness.sent, harness.failed) == ([], [])
