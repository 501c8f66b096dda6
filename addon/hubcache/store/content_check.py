"""Verifies stored content against its digests, one object at a time, and moves what is damaged to the quarantine."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..oci.digest import Digest
from ..oci.errors import ContentDamaged, StorageError
from .file_check import FileCheck
from .store import Store


class State(StrEnum):
    """The state in which content was found."""

    GOOD = "good"
    DAMAGED = "damaged"
    MISSING = "missing"
    """Its row or its file was lost."""
    REMOVED = "removed"
    """It was evicted, or fetched again, during the check."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `why` is the reason for damage."""

    state: State
    why: str = ""


_GOOD, _REMOVED = Finding(State.GOOD), Finding(State.REMOVED)


async def verify_content(
    store: Store, digest: Digest, thread: ThreadPoolExecutor, pause: Callable[[int], float]
) -> Finding:
    """Read content from the disk and compare it with its digest; damaged content is quarantined, so that no client
    receives it. Raises `StorageError` when it cannot be read for another reason.

    A file is read in pieces in `thread`, and is not open or protected between them. `pause` receives the number of
    bytes that were read, and returns the seconds until the next piece.
    """
    size, path = store.usage.sizes.get(digest), store.blob_path(digest)
    if size is None:
        return _REMOVED
    if path is not None:
        return await _verify_file(store, digest, FileCheck(path, digest, size, from_disk=True), path, thread, pause)
    if store.manifest(digest) is not None:  # which verifies it
        pause(size)
        return _GOOD
    await store.damage.quarantine_manifests()
    if digest not in store.usage.sizes:
        return Finding(State.DAMAGED, "does not match its digest")
    if store.problem is not None:  # the row may be readable again in a moment
        raise StorageError(store.problem)
    was_known = await store.capacity.purge(digest, store.remove)
    return Finding(State.MISSING, "its row is missing") if was_known else _REMOVED


async def _verify_file(
    store: Store,
    digest: Digest,
    check: FileCheck,
    path: Path,
    thread: ThreadPoolExecutor,
    pause: Callable[[int], float],
) -> Finding:
    loop = asyncio.get_running_loop()
    while digest in store.usage.sizes:
        before = check.offset
        try:
            more = await loop.run_in_executor(thread, check.step)
        except FileNotFoundError:
            if store.blob_path(digest) != path:  # it was evicted, and perhaps fetched again
                return _REMOVED
            await store.damage.quarantine(digest, path, "is missing")
            return Finding(State.MISSING, "its file is missing")
        except ContentDamaged as error:
            await store.damage.quarantine(digest, path, str(error))
            return Finding(State.DAMAGED, str(error))
        except OSError as error:
            raise StorageError(f"cannot verify a stored blob: {error.strerror or error}") from error
        seconds = pause(check.offset - before)
        if not more:
            return _GOOD
        await asyncio.sleep(seconds)
    return _REMOVED
