"""Sources return exactly the requested bytes in order, and raise errors when they cannot."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from hubcache.oci.digest import Digest, Verifier
from hubcache.oci.errors import BadUpstream, StorageError, Unavailable
from hubcache.store.stored_blob import StoredBlob
from hubcache.transfer.blob_body import BlobBody
from hubcache.transfer.sources import CHUNK, BytesSource, FileSource, UpstreamSource
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import DATA, EACH_READER, Origin, Reader, drain, pour

# -- stored files ----------------------------------------------------------------------------------------------------


class StoredFile:
    """A stored blob; counts how often it is released."""

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
@EACH_READER
async def test_file_source_returns_its_range_in_chunks_and_releases_the_blob(
    tmp_path: Path, start: int, end: int, reader: Reader
) -> None:
    stored = StoredFile(tmp_path, DATA)
    source = FileSource(stored.blob(), start, end)
    assert await reader(source) == DATA[start:end]
    assert stored.released == 0
    await source.close()
    assert stored.released == 1


async def test_truncated_stored_file_is_an_error(tmp_path: Path) -> None:
    stored = StoredFile(tmp_path, DATA)
    source = FileSource(stored.blob(), 0, len(DATA))
    await source.read()
    os.truncate(stored.path, CHUNK + 10)
    assert len(await source.read()) == 10
    for reader in (drain, pour):
        with pytest.raises(StorageError, match="shorter"):
            await reader(source)
    assert not source.finished
    await source.close()


async def test_unreadable_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    source = FileSource(StoredFile(tmp_path, DATA).blob(), 0, 10)
    with monkeypatch.context() as patch:
        for reader, name in ((drain, "pread"), (pour, "preadv")):
            patch.setattr(os, name, refuse)
            with pytest.raises(StorageError, match="Input/output"):
                await reader(source)
    await source.close()


async def test_bytes_source_returns_its_bytes_once() -> None:
    source = BytesSource(b"token")
    assert await drain(source) == b"token"
    assert source.finished


# -- the upstream ----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 400), st.booleans())
def test_upstream_source_returns_its_range_whether_the_upstream_supports_ranges_or_not(
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


async def test_body_that_ends_early_is_an_error() -> None:
    source = UpstreamSource(Origin(DATA[:100]), 0, 101)
    assert await source.read() == DATA[:100]
    with pytest.raises(BadUpstream):
        await source.read()
    await source.close()


@pytest.mark.parametrize("size", [0, 1, CHUNK + 1, len(DATA)])
async def test_last_bytes_of_wrong_content_are_held_back_without_a_store(size: int) -> None:
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


async def test_broken_transfer_is_an_error_and_the_body_is_closed() -> None:
    origin = Origin(DATA[:100], error=Unavailable("broke off"))
    source = UpstreamSource(origin, 0, 200)
    await source.read()
    with pytest.raises(Unavailable):
        await source.read()
    await source.close()
    assert origin.open == 0


async def test_open_raises_a_refusal_before_the_body_begins() -> None:
    @asynccontextmanager
    async def refuse(_start: int, _end: int | None) -> AsyncIterator[BlobBody]:
        raise Unavailable("down")
        yield cast(BlobBody, None)

    source = UpstreamSource(refuse, 0, 10)
    with pytest.raises(Unavailable, match="down"):
        await source.open()
    await source.close()


async def test_unread_source_sends_no_request() -> None:
    origin = Origin(DATA)
    await UpstreamSource(origin, 0, 10).close()
    assert origin.asked == []
