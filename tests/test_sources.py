"""Sources give exactly the bytes asked for, in order, and say so when they cannot."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from hubcache.oci.digest import Digest, Verifier
from hubcache.oci.errors import BadUpstream, StorageError, Unavailable
from hubcache.store.staging import Staged
from hubcache.store.store import StoredBlob
from hubcache.transfer import sources as sources_module
from hubcache.transfer.fill import Fill
from hubcache.transfer.sources import CHUNK, BytesSource, FileSource, FillSource, Source, UpstreamSource
from hubcache.transfer.upstream import BlobBody
from hypothesis import given, settings
from hypothesis import strategies as st

DATA = bytes(range(256)) * 8192  # 2 MiB


async def drain(source: Source) -> bytes:
    """All the rest of a source, as it is read."""
    parts = []
    while not source.finished:
        parts.append(await source.read())
        assert len(parts[-1]) <= CHUNK
    return b"".join(parts)


async def pour(source: Source) -> bytes:
    """All the rest of a source, into a buffer as long as it is on a file."""
    content, buffer = b"", memoryview(bytearray(100_000))
    while not source.finished:
        take = await source.on_file()
        if take is None:
            return content + await drain(source)
        content += buffer[: take(buffer)]
    return content


WAYS = pytest.mark.parametrize("way", [drain, pour])
type Way = Callable[[Source], Awaitable[bytes]]


# -- stored files ----------------------------------------------------------------------------------------------------


class Shelf:
    """Stored blobs that are counted when they are given back."""

    def __init__(self, folder: Path, data: bytes) -> None:
        self.path = folder / "blob"
        self.path.write_bytes(data)
        self.released = 0

    def blob(self) -> StoredBlob:
        def release() -> None:
            self.released += 1

        return StoredBlob(os.open(self.path, os.O_RDONLY), self.path.stat().st_size, self.path, release)


@pytest.mark.parametrize(
    ("start", "end"), [(0, len(DATA)), (1, 2), (CHUNK - 1, CHUNK + 1), (0, 0), (len(DATA), len(DATA)), (100, 1_500_000)]
)
@WAYS
async def test_a_stored_file_gives_its_part_in_chunks_and_is_given_back(
    tmp_path: Path, start: int, end: int, way: Way
) -> None:
    shelf = Shelf(tmp_path, DATA)
    source = FileSource(shelf.blob(), start, end)
    assert await way(source) == DATA[start:end]
    assert shelf.released == 0
    await source.close()
    assert shelf.released == 1


async def test_a_stored_file_that_was_cut_meanwhile_is_an_error_not_a_short_body(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, DATA)
    source = FileSource(shelf.blob(), 0, len(DATA))
    await source.read()
    os.truncate(shelf.path, CHUNK + 10)
    assert len(await source.read()) == 10
    for way in (drain, pour):
        with pytest.raises(StorageError, match="shorter"):
            await way(source)
    assert not source.finished
    await source.close()


async def test_a_disk_that_cannot_be_read_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    source = FileSource(Shelf(tmp_path, DATA).blob(), 0, 10)
    with monkeypatch.context() as patch:
        for way, name in ((drain, "pread"), (pour, "preadv")):
            patch.setattr(os, name, refuse)
            with pytest.raises(StorageError, match="Input/output"):
                await way(source)
    await source.close()


async def test_bytes_at_hand_are_given_once() -> None:
    source = BytesSource(b"token")
    assert await drain(source) == b"token"
    assert source.finished


# -- the upstream ----------------------------------------------------------------------------------------------------


class Body:
    """A made-up blob body: `data` from `start` on, in pieces, ending with `error` if given."""

    def __init__(self, data: bytes, start: int, piece: int, error: Exception | None = None) -> None:
        self.start = start
        self.size = len(data)
        self._data = data
        self._piece = piece
        self._error = error

    async def chunks(self) -> AsyncIterator[bytes]:
        for at in range(self.start, len(self._data), self._piece):
            yield self._data[at : at + self._piece]
        if self._error is not None:
            raise self._error


class Origin:
    """Opens bodies and remembers what was asked for and what is still open."""

    def __init__(self, data: bytes, *, piece: int = 1000, ranges: bool = True, error: Exception | None = None) -> None:
        self.asked: list[tuple[int, int | None]] = []
        self.open = 0
        self._data, self._piece, self._ranges, self._error = data, piece, ranges, error

    @asynccontextmanager
    async def __call__(self, start: int, end: int | None) -> AsyncIterator[BlobBody]:
        self.asked.append((start, end))
        self.open += 1
        try:
            yield cast(BlobBody, Body(self._data, start if self._ranges else 0, self._piece, self._error))
        finally:
            self.open -= 1


@settings(max_examples=60)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 400), st.booleans())
def test_the_upstream_gives_the_part_whether_it_honours_ranges_or_not(
    first: int, second: int, piece: int, ranges: bool
) -> None:
    data, (start, end) = DATA[:300], sorted((first, second))
    origin = Origin(data, piece=piece, ranges=ranges)

    async def read() -> bytes:
        source = UpstreamSource(origin, start, end)
        got = await drain(source)
        await source.close()
        return got

    assert asyncio.run(read()) == data[start:end]
    assert origin.asked == ([(start, end)] if end > start else [])
    assert origin.open == 0


async def test_an_upstream_that_ends_early_is_an_error_not_a_short_body() -> None:
    source = UpstreamSource(Origin(DATA[:100]), 0, 101)
    assert await source.read() == DATA[:100]
    with pytest.raises(BadUpstream):
        await source.read()
    await source.close()


@pytest.mark.parametrize("size", [0, 1, CHUNK + 1, len(DATA)])
async def test_bytes_that_no_store_verifies_are_held_back_at_the_end_when_they_are_wrong(size: int) -> None:
    good, digest = DATA[:size], Digest.of(DATA[:size])
    right = UpstreamSource(Origin(good), 0, size, Verifier(digest, size))
    await right.open()
    assert await drain(right) == good
    await right.close()
    wrong = UpstreamSource(Origin(good), 0, size, Verifier(Digest.of(b"another"), size))
    received = []

    async def all_of(source: UpstreamSource) -> None:
        await source.open()
        while not source.finished:
            received.append(await source.read())

    with pytest.raises(BadUpstream, match="does not match"):
        await all_of(wrong)
    assert not good or sum(map(len, received)) < size
    await wrong.close()


async def test_an_upstream_that_breaks_off_says_so_and_is_closed() -> None:
    origin = Origin(DATA[:100], error=Unavailable("broke off"))
    source = UpstreamSource(origin, 0, 200)
    await source.read()
    with pytest.raises(Unavailable):
        await source.read()
    await source.close()
    assert origin.open == 0


async def test_opening_first_shows_a_refusal_before_the_body_begins() -> None:
    @asynccontextmanager
    async def refuse(_start: int, _end: int | None) -> AsyncIterator[BlobBody]:
        raise Unavailable("down")
        yield cast(BlobBody, None)

    source = UpstreamSource(refuse, 0, 10)
    with pytest.raises(Unavailable, match="down"):
        await source.open()
    await source.close()


async def test_a_source_that_was_never_read_asks_nothing_of_the_upstream() -> None:
    origin = Origin(DATA)
    await UpstreamSource(origin, 0, 10).close()
    assert origin.asked == []


# -- growing files ---------------------------------------------------------------------------------------------------


class Growing:
    """A fill whose progress the test decides."""

    def __init__(self, folder: Path, size: int) -> None:
        self.fill = Fill(Digest.of(DATA[:size]))
        self.fill.staged = Staged(folder / "staged", self.fill.digest, size)
        self.fill.size = size
        self.origin = Origin(DATA[:size])

    def grow(self, until: int) -> None:
        assert self.fill.staged is not None
        self.fill.staged.write(DATA[self.fill.staged.written : until])
        self.fill.advance(until)

    def finish(self) -> None:
        self.fill.verified = True
        self.fill.notify()

    def fail(self, error: StorageError | BadUpstream) -> None:
        self.fill.error = error
        self.fill.notify()

    def source(self, start: int, end: int, released: Callable[[], None] = lambda: None) -> FillSource:
        staged = self.fill.staged
        assert staged is not None
        return FillSource(
            self.fill,
            staged.path,
            os.dup(staged.fd),
            start,
            end,
            lambda at, until: UpstreamSource(self.origin, at, until),
            released,
        )


@WAYS
async def test_a_growing_file_is_followed_to_its_end(tmp_path: Path, way: Way) -> None:
    growing = Growing(tmp_path, len(DATA))
    source = growing.source(0, len(DATA))
    reading = asyncio.ensure_future(way(source))
    for until in (1, 2, 1000, CHUNK, CHUNK + 1, len(DATA)):
        growing.grow(until)
        await asyncio.sleep(0.005)
    assert not reading.done()
    growing.finish()
    assert await reading == DATA
    assert growing.origin.asked == []
    await source.close()


async def test_the_first_bytes_are_not_held_back_for_a_bigger_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "_GATHER_SECONDS", 60.0)
    growing = Growing(tmp_path, len(DATA))
    source = growing.source(0, len(DATA))
    growing.grow(10)
    async with asyncio.timeout(1):
        assert await source.read() == DATA[:10]
    await source.close()


async def test_later_bytes_are_gathered_but_not_for_long(tmp_path: Path) -> None:
    growing = Growing(tmp_path, len(DATA))
    source = growing.source(0, len(DATA))
    growing.grow(10)
    await source.read()
    growing.grow(20)
    reading = asyncio.ensure_future(source.read())
    await asyncio.sleep(0.002)
    growing.grow(30)
    async with asyncio.timeout(1):
        assert await reading == DATA[10:30]
    await source.close()


async def test_the_last_byte_is_not_given_before_the_fill_is_verified(tmp_path: Path) -> None:
    growing = Growing(tmp_path, 100)
    source = growing.source(0, 100)
    growing.grow(100)
    assert await source.read() == DATA[:99]
    last = asyncio.ensure_future(source.read())
    await asyncio.sleep(0.03)
    assert not last.done()
    growing.finish()
    assert await last == DATA[99:100]
    await source.close()


@WAYS
async def test_the_file_stays_readable_when_staging_has_ended(tmp_path: Path, way: Way) -> None:
    growing = Growing(tmp_path, 1000)
    source = growing.source(0, 1000)
    growing.grow(1000)
    growing.finish()
    assert growing.fill.staged is not None
    growing.fill.staged.close()
    assert await way(source) == DATA[:1000]
    await source.close()


@WAYS
@pytest.mark.parametrize("given_before", [0, 10, 500])
async def test_when_the_store_fails_the_rest_comes_from_the_upstream(
    tmp_path: Path, given_before: int, way: Way
) -> None:
    growing = Growing(tmp_path, 1000)
    source, got = growing.source(0, 900), b""
    if given_before:
        growing.grow(given_before)
        got = await source.read()
    growing.fail(StorageError("no space"))
    assert got + await way(source) == DATA[:900]
    assert growing.origin.asked == [(given_before, 900)]
    await source.close()
    assert growing.origin.open == 0


async def test_when_the_upstream_fails_the_reader_gets_its_error(tmp_path: Path) -> None:
    growing = Growing(tmp_path, 1000)
    source = growing.source(0, 1000)
    waiting = asyncio.ensure_future(source.read())
    await asyncio.sleep(0)
    growing.fail(BadUpstream("content does not match its digest"))
    with pytest.raises(BadUpstream):
        await waiting
    assert growing.origin.asked == []
    await source.close()


@WAYS
async def test_a_file_that_cannot_be_read_back_is_fetched_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    growing = Growing(tmp_path, 1000)
    growing.grow(500)
    source = growing.source(0, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", refuse)
        assert await way(source) == DATA[:1000]
    assert growing.origin.asked == [(0, 1000)]
    await source.close()


@WAYS
async def test_a_growing_file_that_was_cut_is_fetched_instead(tmp_path: Path, way: Way) -> None:
    growing = Growing(tmp_path, 1000)
    growing.grow(500)
    os.truncate(tmp_path / "staged", 200)
    source = growing.source(0, 1000)
    assert await way(source) == DATA[:1000]
    assert growing.origin.asked == [(200, 1000)]
    await source.close()


async def test_nothing_is_taken_of_a_growing_file_before_there_is_more(tmp_path: Path) -> None:
    growing = Growing(tmp_path, 1000)
    growing.grow(10)
    source = growing.source(0, 1000)
    take, buffer = await source.on_file(), memoryview(bytearray(100))
    assert take is not None
    assert (take(buffer), take(buffer)) == (10, 0)
    growing.grow(20)
    assert take(buffer) == 10
    assert buffer[:10] == DATA[10:20]
    await source.close()


async def test_closing_a_growing_file_is_told_before_what_came_instead_is_closed(tmp_path: Path) -> None:
    growing, told = Growing(tmp_path, 1000), []
    growing.grow(1)
    source = growing.source(0, 1000, lambda: told.append(growing.origin.open))
    growing.fail(StorageError("no space"))
    await source.read()
    await source.read()
    await source.close()
    assert (told, growing.origin.open) == ([1], 0)
