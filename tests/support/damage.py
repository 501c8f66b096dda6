"""Stores and their content, damaged as disks, kills and people do it."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hubcache.oci.digest import Digest
from hubcache.serve.messages import Listener
from hubcache.store.file_check import PIECE
from hubcache.store.store import Store

from support.engine import Cache, running
from support.standin import Hub, random_bytes
from support.stores import files_below

LAYER = random_bytes(3 * PIECE + 7)
REPO = "library/app"


def blob_file(directory: Path) -> Path:
    """The file of the only blob."""
    [path] = files_below(directory / "store/blobs")
    return path


def flip(path: Path, at: int = 1) -> None:
    """Change one bit as a failing disk does: neither the size nor the times tell."""
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def killed(directory: Path) -> None:
    """Make a closed store look as if its process had been killed."""
    with sqlite3.connect(directory / "store/cache.db") as connection:
        connection.execute("DELETE FROM Cache WHERE key = 'closed'")
    connection.close()


async def opens(store: Store, digest: Digest) -> bool:
    """Whether a blob can be opened; it is right then."""
    blob = await store.open_blob(digest)
    if blob is None:
        return False
    with os.fdopen(os.dup(blob.fd), "rb") as file:
        assert digest.matches(file.read())
    blob.close()
    return True


def quarantined(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in files_below(directory / "quarantine")]


def date_back(directory: Path) -> None:
    """Let the only blob be one that was stored long ago."""
    path = blob_file(directory)
    digest, _, unique = path.name.split(".")
    past = 10**18
    os.utime(path, ns=(past, past))
    path = path.rename(path.with_name(f"{digest}.{past:x}.{unique}"))
    with sqlite3.connect(directory / "store/cache.db") as connection:
        name = str(path.relative_to(directory / "store"))
        connection.execute("UPDATE Cache SET filename = ? WHERE key LIKE 'blob/%'", (name,))
    connection.close()


def spoil_manifest(directory: Path) -> None:
    with sqlite3.connect(directory / "store/cache.db") as connection:
        connection.execute(
            "UPDATE Cache SET value = CAST(REPLACE(CAST(value AS TEXT), 'layers', 'Layers') AS BLOB)"
            " WHERE key LIKE 'manifest/%'"
        )
    connection.close()


@asynccontextmanager
async def stored(hub: Hub, tmp_path: Path, *digests: str) -> AsyncIterator[Cache]:
    """A cache that has these blobs of the Hub."""
    async with running(hub, tmp_path / "store") as cache:
        for digest in digests:
            assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/blobs/{digest}"))[0] == 200
        await asyncio.gather(*cache.engine.fills._tasks)
        yield cache
