"""Sources give exactly the bytes asked for, in order, and say so when they cannot."""

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
from support.streams import DATA, WAYS, Origin, Way, drain, pour

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
