"""Clients that receive a damaged or unreadable blob get the correct one when they retry."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import StorageError
from hubcache.serve.messages import Answer, Listener
from hubcache.store.file_check import PIECE
from support.damage import LAYER, REPO, blob_file, cache_with_blobs, flip_bit
from support.engine import Cache, read
from support.standin import Hub, random_bytes
from support.workers import connected_worker


async def test_unreadable_blob_breaks_off_and_is_fetched_at_the_retry(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, LAYER)
    async with cache_with_blobs(hub, tmp_path, digest) as cache:
        path = blob_file(tmp_path / "store")
        bad = path.stat().st_ino

        def failing(fd: int, count: int, at: int) -> bytes:
            if os.fstat(fd).st_ino == bad and at >= PIECE:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return pread(fd, count, at)

        pread = os.pread
        monkeypatch.setattr(os, "pread", failing)
        with pytest.raises(StorageError):
            await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{digest}")
        assert await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{digest}") == (200, LAYER)
        assert cache.engine.store.damage.count == 1
        assert not path.exists()


async def test_client_that_repeats_a_complete_download_gets_the_correct_blob(hub: Hub, tmp_path: Path) -> None:
    digest = hub.blob(REPO, LAYER)
    async with cache_with_blobs(hub, tmp_path, digest) as cache:
        flip_bit(blob_file(tmp_path / "store"))
        assert await pull(cache, digest) != LAYER
        assert await pull(cache, digest) == LAYER
        assert cache.engine.store.damage.count == 1


async def test_damaged_blob_is_fetched_again_for_a_client_of_a_stored_only_mirror(hub: Hub, tmp_path: Path) -> None:
    digest = hub.blob(REPO, LAYER)
    async with cache_with_blobs(hub, tmp_path, digest) as cache:
        cache.apply(offer_only=True)
        flip_bit(blob_file(tmp_path / "store"))
        assert await pull(cache, digest) != LAYER
        assert await pull(cache, digest) == LAYER


@pytest.mark.parametrize(
    "other",
    [{"client": "192.0.2.9"}, {"agent": "other"}, {"part": "bytes=0-"}],
    ids=["another address", "another program", "a range"],
)
async def test_request_of_another_client_or_kind_requires_no_check(
    hub: Hub, tmp_path: Path, other: dict[str, str]
) -> None:
    digest = hub.blob(REPO, LAYER)
    async with cache_with_blobs(hub, tmp_path, digest) as cache:
        assert await pull(cache, digest) == LAYER
        await pull(cache, digest, **other)
        assert Digest.parse(digest) not in cache.engine.store.inspector._found_good


async def test_concurrent_downloads_require_no_check(hub: Hub, tmp_path: Path) -> None:
    """Several machines behind one address cause such downloads."""
    digest = hub.blob(REPO, LAYER)
    async with cache_with_blobs(hub, tmp_path, digest) as cache:
        answers = [await ask(cache, digest) for _ in range(4)]
        assert [await read(answer) for answer in answers] == [LAYER] * 4
        assert Digest.parse(digest) not in cache.engine.store.inspector._found_good


async def ask(
    cache: Cache, digest: str, client: str = "192.0.2.1", agent: str = "containerd", part: str | None = None
) -> Answer:
    headers = {"user_agent": agent} | ({} if part is None else {"range": part})
    request = cache.request(Listener.MIRROR, "GET", f"/v2/{REPO}/blobs/{digest}", **headers)
    answer = await cache.engine.answer(replace(request, client=client))
    assert isinstance(answer, Answer)
    return answer


async def pull(cache: Cache, digest: str, **who: str) -> bytes:
    return await read(await ask(cache, digest, **who))


# -- with workers


async def test_small_damaged_blob_is_not_served(hub: Hub, tmp_path: Path) -> None:
    """Workers repeat small answers for a second to all clients, so that a small blob is verified each time."""
    small = random_bytes(5000)
    digest = hub.blob(REPO, small)
    async with cache_with_blobs(hub, tmp_path, digest) as cache, connected_worker(cache) as pair:
        flip_bit(blob_file(tmp_path / "store"))
        for _ in range(2):
            assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == small
        assert cache.engine.store.damage.count == 1


async def test_client_of_a_worker_that_repeats_a_download_gets_the_correct_blob(hub: Hub, tmp_path: Path) -> None:
    digest = hub.blob(REPO, LAYER)
    async with cache_with_blobs(hub, tmp_path, digest) as cache, connected_worker(cache) as pair:
        request = replace(cache.request(Listener.MIRROR, "GET", f"/v2/{REPO}/blobs/{digest}"), client="192.0.2.1")
        flip_bit(blob_file(tmp_path / "store"))
        bodies = []
        for _ in range(2):
            answer = await pair.remote.answer(request)
            assert answer is not None
            bodies.append(await read(answer))
        assert [body == LAYER for body in bodies] == [False, True]
        assert cache.engine.store.damage.count == 1


async def test_blob_that_is_unreadable_in_a_worker_is_fetched_at_the_retry(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hub.blob(REPO, LAYER)
    async with cache_with_blobs(hub, tmp_path, digest) as cache, connected_worker(cache) as pair:
        bad, pread = blob_file(tmp_path / "store").stat().st_ino, os.pread

        def failing(fd: int, count: int, at: int) -> bytes:
            if os.fstat(fd).st_ino == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return pread(fd, count, at)

        monkeypatch.setattr(os, "pread", failing)
        with pytest.raises(StorageError):
            await read(await pair.get(f"/v2/{REPO}/blobs/{digest}"))
        assert await read(await pair.get(f"/v2/{REPO}/blobs/{digest}")) == LAYER
        assert cache.engine.store.damage.count == 1
