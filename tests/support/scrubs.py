"""A scrub that runs during a test and reports no errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hubcache.oci.errors import StorageError
from hubcache.store.scrub import Scrub
from hubcache.store.store import Store

from support.stores import files_below

FAST = 1 << 40
"""A rate in bytes per second that is never reached."""


class Failures(list[StorageError]):
    """Errors of the store that a scrub reported."""


@asynccontextmanager
async def scrubbing(store: Store, *, rate: int | None = FAST, period: float | None = None) -> AsyncIterator[Scrub]:
    """Run a scrub, and check that it reports no errors."""
    failures = Failures()
    scrub = Scrub(store, failures.append)
    scrub.rate, scrub.period = rate, period
    scrub.start()
    try:
        yield scrub
    finally:
        await scrub.close()
        assert failures == []


def files(directory: Path) -> list[Path]:
    """Return the files of stored blobs, in the order of their names."""
    return sorted(files_below(directory / "store/blobs"), key=lambda path: path.name)
