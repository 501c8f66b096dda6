"""Reads a blob that is being filled, or that the fill has stored meanwhile."""

import os
from collections.abc import Callable

from ..oci.errors import StorageError
from ..store.store import Store
from ..transfer.fill import Fill
from ..transfer.sources import FileSource, FillSource, Source


async def follow_fill(
    store: Store, fill: Fill, start: int, end: int, fallback: Callable[[int, int], Source]
) -> Source | None:
    """Return bytes `start` to before `end` of a fill that has been opened; None when it has ended without storing them.

    `fallback` supplies the rest when the store fails. Raises `StorageError`.
    """
    if fill.staged is None or fill.staged.closed:
        stored = await store.open_blob(fill.digest)
        return None if stored is None else FileSource(stored, start, end)
    try:
        fd = os.dup(fill.staged.fd)
    except OSError as error:
        raise StorageError(f"cannot open the file of a running fill: {error.strerror or error}") from error
    store.usage.begin_reading(fill.digest)
    released: Callable[[], None] = lambda: store.usage.end_reading(fill.digest)  # noqa: E731
    return FillSource(fill, fill.staged.path, fd, start, end, fallback, released)
