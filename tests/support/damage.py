"""Damages stores and their content as disks, kills and users do."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from hubcache.oci.digest import Digest
from hubcache.serve.messages import Listener
from hubcache.store.file_check import PIECE
from hubcache.store.store import Store

from support.engine import Cache, running
from support.standin import Hub, random_bytes
from support.stores import blob_files, files_below

LAYER = random_bytes(3 * PIECE + 7)
REPO = "library/app"


def blob_file(directory: Path) -> Path:
    """Return the file of the only blob."""
    [path] = blob_files(directory)
    return path


def flip_bit(path: Path, at: int = 1) -> None:
    """Change one bit as a failing disk does, without a change of size or times."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def change_rows(directory: Path, statement: str, *values: object) -> None:
    """Execute a statement in the database of a store."""
    with closing(sqlite3.connect(directory / "store/cache.db", autocommit=True)) as connection:
        connection.execute(statement, values)


def mark_as_killed(directory: Path) -> None:
    """Make a closed store look as if its process had been killed."""
    change_rows(directory, "DELETE FROM Cache WHERE key = 'closed'")


async def can_open(store: Store, digest: Digest) -> bool:
    """Whether a blob can be opened; checks that its content is correct."""
    blob = await store.open_blob(digest)
    if blob is None:
        return False
    with os.fdopen(os.dup(blob.fd), "rb") as file:
        assert digest.matches(file.read())
    blob.close()
    return True


def quarantined_files(directory: Path) -> list[bytes]:
    """Return the content of the files in the quarantine."""
    return [path.read_bytes() for path in files_below(directory / "quarantine")]


def make_old(directory: Path) -> None:
    """Change the only blob's file and row as if it had been stored long ago."""
    path = blob_file(directory)
    digest, _, unique = path.name.split(".")
    past = 10**18
    os.utime(path, ns=(past, past))
    path = path.rename(path.with_name(f"{digest}.{past:x}.{unique}"))
    name = str(path.relative_to(directory / "store"))
    change_rows(directory, "UPDATE Cache SET filename = ? WHERE key LIKE 'blob/%'", name)


def damage_manifest(directory: Path) -> None:
    """Change the stored manifests so that they do not match their digests."""
    change_rows(
        directory,
        "UPDATE Cache SET value = CAST(REPLACE(CAST(value AS TEXT), 'layers', 'Layers') AS BLOB)"
        " WHERE key LIKE 'manifest/%'",
    )


@asynccontextmanager
async def cache_with_blobs(hub: Hub, tmp_path: Path, *digests: str) -> AsyncIterator[Cache]:
    """Run a cache that has stored these blobs of the Hub."""
    async with running(hub, tmp_path / "store") as cache:
        for digest in digests:
            assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{digest}"))[0] == 200
        await asyncio.gather(*cache.engine.fills._tasks)
        yield cache
