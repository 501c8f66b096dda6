"""The store recovers from a killed process and from deleted directories."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hubcache.oci.errors import StorageError
from hubcache.store.store import Store
from support.damage import LAYER, blob_file, can_open, make_old, mark_as_killed
from support.stores import MIB, files_below, opened_store, put_blob

# -- unclean stops


async def test_last_blobs_before_an_unclean_stop_are_verified_before_they_are_served(
    tmp_path: Path,
) -> None:
    async with opened_store(tmp_path) as store:
        old = await put_blob(store, b"old")
        make_old(tmp_path)
        new = await put_blob(store, LAYER)
    mark_as_killed(tmp_path)
    async with opened_store(tmp_path) as store:
        assert store.unclean
        assert store.has(old)
        assert store.inspector.required == (new,)


async def test_no_check_is_required_after_a_clean_stop(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        await put_blob(store, LAYER)
    async with opened_store(tmp_path) as store:
        assert not store.unclean
        assert store.inspector.required == ()


async def test_row_whose_file_was_lost_in_an_unclean_stop_is_deleted(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        digest = await put_blob(store, LAYER)
    blob_file(tmp_path).unlink()
    mark_as_killed(tmp_path)
    async with opened_store(tmp_path) as store:
        assert not store.has(digest)
        assert store.usage.used == 0


# -- directories that are deleted


@pytest.mark.parametrize("deleted", [".", "store", "store/blobs", "staging", "lock"])
async def test_store_is_opened_again_when_a_directory_is_deleted(tmp_path: Path, deleted: str) -> None:
    directory = tmp_path / "cache"
    async with opened_store(directory) as store:
        digest = await put_blob(store, LAYER)
        remove: Callable[[Path], None] = Path.unlink if deleted == "lock" else shutil.rmtree  # type: ignore[assignment]
        remove(directory / deleted)
        await store.maintain()
        assert store.is_open
        other = await put_blob(store, b"other")
        assert await can_open(store, other)
        files = files_below(directory / "store/blobs")
        assert store.usage.used == sum(-(-path.stat().st_size // 4096) * 4096 for path in files)
        assert store.has(digest) is (deleted in ("staging", "lock"))
    async with opened_store(directory) as store:
        assert await can_open(store, other)


async def test_content_can_be_staged_right_after_the_directory_was_deleted(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    async with opened_store(directory, 64 * MIB) as store:
        await put_blob(store, LAYER)
        shutil.rmtree(directory)
        digest = await put_blob(store, LAYER)
        assert await can_open(store, digest)
    async with opened_store(directory) as store:
        assert await can_open(store, digest)


async def test_deleted_lock_file_is_created_and_locked_again(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        (tmp_path / "lock").unlink()
        await store.maintain()
        other = Store(tmp_path, 64 * MIB)
        with pytest.raises(StorageError, match="in use by another process"):
            other.open()
        await other.close()
