"""Stores for tests, and content for them."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hubcache.decide.records import ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.oci.media import OCI_MANIFEST
from hubcache.store.store import Store

MIB = 1 << 20


@asynccontextmanager
async def opened_store(directory: Path, capacity: int = 64 * MIB) -> AsyncIterator[Store]:
    """Open a store, and close it at the end."""
    store = Store(directory, capacity)
    try:
        store.open()
        yield store
    finally:
        await store.close()


async def put_blob(store: Store, data: bytes) -> Digest:
    """Stage, write and commit a blob; return its digest."""
    digest = Digest.of(data)
    staged = await store.stage(digest, len(data))
    try:
        staged.write(data)
        await store.commit(staged)
    finally:
        store.finish(staged)
    return digest


async def put_image(store: Store, *layers: bytes, note: str = "") -> tuple[Digest, list[Digest]]:
    """Store an image without a config; return its digest and those of its layers."""
    digests = [await put_blob(store, layer) for layer in layers]
    record = ManifestRecord(OCI_MANIFEST, manifest_of(*zip(digests, map(len, layers), strict=True), note=note))
    digest = Digest.of(record.body)
    await store.put_manifest(digest, record)
    return digest, digests


def manifest_of(*layers: tuple[Digest, int], note: str = "") -> bytes:
    """Return an image manifest without a config."""
    document = {"layers": [{"digest": str(digest), "size": size} for digest, size in layers], "note": note}
    return json.dumps(document).encode()


def files_below(directory: Path) -> list[Path]:
    """Return all files in a directory and its subdirectories, in no particular order."""
    return [Path(folder, name) for folder, _, names in os.walk(directory) for name in names]


def bytes_on_disk(directory: Path) -> int:
    """Return the bytes that the cap limits: the sizes of content, and the blocks of the index (its log has holes)."""
    sizes: dict[int, int] = {}  # by inode: a file that is being committed has two names
    for path in files_below(directory):
        try:
            state = path.stat()
        except FileNotFoundError:  # just removed by the writer thread
            continue
        sizes[state.st_ino] = state.st_blocks * 512 if path.name.startswith("cache.db") else state.st_size
    return sum(sizes.values())


def blob_files(directory: Path) -> list[Path]:
    """Return the files of all stored blobs, in no particular order."""
    return files_below(directory / "store/blobs")
