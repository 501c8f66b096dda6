"""`FillSource` returns bytes as they arrive, and the rest from the upstream when the store fails."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, StorageError
from hubcache.store.staging import Staged
from hubcache.transfer import sources as sources_module
from hubcache.transfer.fill import Fill
from hubcache.transfer.sources import CHUNK, FillSource, UpstreamSource
from support.streams import DATA, EACH_READER, Origin, Reader


class Growing:
    """A fill whose progress the test controls."""

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


@EACH_READER
async def test_growing_file_is_read_to_its_end(tmp_path: Path, reader: Reader) -> None:
    growing = Growing(tmp_path, len(DATA))
    source = growing.source(0, len(DATA))
    reading = asyncio.ensure_future(reader(source))
    for until in (1, 2, 1000, CHUNK, CHUNK + 1, len(DATA)):
        growing.grow(until)
        await asyncio.sleep(0.005)
    assert not reading.done()
    growing.finish()
    assert await reading == DATA
    assert growing.origin.asked == []
    await source.close()


async def test_first_bytes_do_not_wait_for_a_whole_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "_GATHER_SECONDS", 60.0)
    growing = Growing(tmp_path, len(DATA))
    source = growing.source(0, len(DATA))
    growing.grow(10)
    async with asyncio.timeout(30):
        assert await source.read() == DATA[:10]
    await source.close()


async def test_later_bytes_wait_briefly_for_a_whole_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_module, "_GATHER_SECONDS", 0.5)
    growing = Growing(tmp_path, len(DATA))
    source = growing.source(0, len(DATA))
    growing.grow(10)
    await source.read()
    growing.grow(20)
    reading = asyncio.ensure_future(source.read())
    await asyncio.sleep(0)
    growing.grow(30)
    async with asyncio.timeout(30):
        assert await reading == DATA[10:30]
    await source.close()


async def test_last_byte_is_not_returned_before_the_fill_is_verified(tmp_path: Path) -> None:
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


@EACH_READER
async def test_file_stays_readable_after_staging_has_ended(tmp_path: Path, reader: Reader) -> None:
    growing = Growing(tmp_path, 1000)
    source = growing.source(0, 1000)
    growing.grow(1000)
    growing.finish()
    assert growing.fill.staged is not None
    growing.fill.staged.close()
    assert await reader(source) == DATA[:1000]
    await source.close()


@EACH_READER
@pytest.mark.parametrize("given_before", [0, 10, 500])
async def test_rest_comes_from_the_upstream_when_the_store_fails(
    tmp_path: Path, given_before: int, reader: Reader
) -> None:
    growing = Growing(tmp_path, 1000)
    source, got = growing.source(0, 900), b""
    if given_before:
        growing.grow(given_before)
        got = await source.read()
    growing.fail(StorageError("no space"))
    assert got + await reader(source) == DATA[:900]
    assert growing.origin.asked == [(given_before, 900)]
    await source.close()
    assert growing.origin.open == 0


async def test_upstream_failure_reaches_the_reader(tmp_path: Path) -> None:
    growing = Growing(tmp_path, 1000)
    source = growing.source(0, 1000)
    waiting = asyncio.ensure_future(source.read())
    await asyncio.sleep(0)
    growing.fail(BadUpstream("content does not match its digest"))
    with pytest.raises(BadUpstream):
        await waiting
    assert growing.origin.asked == []
    await source.close()


@EACH_READER
async def test_file_that_cannot_be_read_is_replaced_by_the_upstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Reader
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    growing = Growing(tmp_path, 1000)
    growing.grow(500)
    source = growing.source(0, 1000)
    with monkeypatch.context() as patch:
        for function in ("pread", "preadv", "sendfile"):
            patch.setattr(os, function, refuse)
        assert await reader(source) == DATA[:1000]
    assert growing.origin.asked == [(0, 1000)]
    await source.close()


@EACH_READER
async def test_truncated_file_is_replaced_by_the_upstream(tmp_path: Path, reader: Reader) -> None:
    growing = Growing(tmp_path, 1000)
    growing.grow(500)
    os.truncate(tmp_path / "staged", 200)
    source = growing.source(0, 1000)
    assert await reader(source) == DATA[:1000]
    assert growing.origin.asked == [(200, 1000)]
    await source.close()


async def test_nothing_is_read_before_more_bytes_have_arrived(tmp_path: Path) -> None:
    growing = Growing(tmp_path, 1000)
    growing.grow(10)
    source = growing.source(0, 1000)
    part, buffer = await source.file_part(), memoryview(bytearray(100))
    assert part is not None
    assert (part.read_into(buffer), part.read_into(buffer)) == (10, 0)
    growing.grow(20)
    assert part.read_into(buffer) == 10
    assert buffer[:10] == DATA[10:20]
    await source.close()


async def test_released_is_called_before_the_fallback_is_closed(tmp_path: Path) -> None:
    growing, open_at_release = Growing(tmp_path, 1000), list[int]()
    growing.grow(1)
    source = growing.source(0, 1000, lambda: open_at_release.append(growing.origin.open))
    growing.fail(StorageError("no space"))
    await source.read()
    await source.read()
    await source.close()
    assert (open_at_release, growing.origin.open) == ([1], 0)
