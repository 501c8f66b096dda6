"""Small stored bodies are in memory in the answer, except those that only some clients may read."""

import os
from pathlib import Path

import pytest
from hubcache.oci.errors import StorageError
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.serve.messages import LOCAL_TOKEN, MAX_SMALL_BODY, Answer, Listener, Request, Result
from hubcache.serve.small_bodies import read_small_body
from hubcache.store.store import Store
from hubcache.transfer.sources import BytesSource, FileSource
from support.standin import random_bytes
from support.stores import opened_store, put_blob


def request(listener: Listener = Listener.MIRROR, **headers: str) -> Request:
    return Request("GET", "/v2/library/app/blobs/x", Registry.parse(HUB_HOST), listener, headers)


async def stored_answer(store: Store, data: bytes, start: int = 0) -> Answer:
    """An answer whose source is a stored blob, from byte `start` on."""
    blob = await store.open_blob(await put_blob(store, data))
    assert blob is not None
    length = len(data) - start
    return Answer(200, {}, Result.HIT, source=FileSource(blob, start, len(data)), length=length, size=len(data))


@pytest.mark.parametrize("size", [1, MAX_SMALL_BODY])
async def test_small_body_is_read_and_its_file_is_closed(tmp_path: Path, size: int) -> None:
    data = random_bytes(size)
    async with opened_store(tmp_path) as store:
        answer = await stored_answer(store, data)
        assert await read_small_body(request(), answer) == size
        assert (answer.body, answer.source, answer.length) == (data, None, size)
        assert not store.usage.in_use


async def test_small_part_of_a_large_blob_is_read(tmp_path: Path) -> None:
    data = random_bytes(MAX_SMALL_BODY + 100)
    async with opened_store(tmp_path) as store:
        answer = await stored_answer(store, data, len(data) - 10)
        assert await read_small_body(request(), answer) == 10
        assert (answer.body, answer.source) == (data[-10:], None)


@pytest.mark.parametrize(
    ("size", "request_", "reads"),
    [
        (MAX_SMALL_BODY + 1, request(), False),
        (100, request(Listener.PROXY, authorization="Bearer own"), False),
        (100, request(Listener.PROXY, authorization=f"Bearer {LOCAL_TOKEN}"), True),
        (100, request(Listener.PROXY), True),
        (100, request(Listener.MIRROR, authorization="Bearer own"), True),
    ],
    ids=["large", "proxy, own credentials", "proxy, local token", "proxy, anonymous", "mirror has no accounts"],
)
async def test_only_a_small_body_that_every_client_may_read_is_read(
    tmp_path: Path, size: int, request_: Request, reads: bool
) -> None:
    async with opened_store(tmp_path) as store:
        answer = await stored_answer(store, random_bytes(size))
        assert await read_small_body(request_, answer) == (size if reads else 0)
        assert (answer.source is None, bool(answer.body)) == (reads, reads)
        if answer.source is not None:
            assert await answer.source.read() == random_bytes(size)
            await answer.source.close()


async def test_file_that_cannot_be_read_stays_in_its_source(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        answer = await stored_answer(store, random_bytes(4096))
        assert isinstance(answer.source, FileSource)
        os.truncate(answer.source.path, 0)
        assert await read_small_body(request(), answer) == 0
        assert answer.body == b""
        with pytest.raises(StorageError, match="shorter"):
            await answer.source.read()
        await answer.source.close()


async def test_body_that_is_not_stored_stays_in_its_source() -> None:
    """A token service's answer must not stay in a recorded flow."""
    source = BytesSource(b"token")
    answer = Answer(200, {}, Result.BYPASS, source=source, length=5)
    assert await read_small_body(request(Listener.PROXY), answer) == 0
    assert (answer.body, answer.source) == (b"", source)
