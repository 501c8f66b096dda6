"""Writes a file to the bucket, in parts."""

from __future__ import annotations  # obstore has the names of its types in stub files only

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore
from obstore.exceptions import BaseError

from ..oci.errors import StorageError

if TYPE_CHECKING:
    from obstore import AsyncWritableFile
    from obstore.store import ObjectStore

PART = 8 << 20
"""Bytes of a part; S3 accepts 5 MiB to 5 GiB."""

_PARALLEL = 2
"""Parts that are sent at the same time."""

_ABORT_SECONDS = 2.0
"""Longest time for the deletion of parts after a failure. A lifecycle rule of the bucket deletes what remains."""


async def upload_file(store: ObjectStore, key: str, path: Path) -> None:
    """Write the bytes of a file. Nobody can read the object before it is complete.

    When this fails or is cancelled, the parts that were sent are deleted: they would cost money, and appear in no list
    of objects. Raises `StorageError` when the file cannot be read, and the errors of obstore and `OSError` when the
    bucket does not accept it.
    """
    parts = _parts(path)
    first = await anext(parts, b"")  # a file that cannot be read causes no request
    writer = obstore.open_writer_async(store, key, buffer_size=PART, max_concurrency=_PARALLEL)
    async with contextlib.aclosing(parts), contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_abort, writer)
        await writer.write(first)
        async for part in parts:
            await writer.write(part)
        stack.pop_all()
    await writer.close()


async def _parts(path: Path) -> AsyncGenerator[bytes]:
    with contextlib.ExitStack() as stack:
        try:
            file = await _in_thread(lambda: stack.enter_context(path.open("rb", buffering=0)))
            while part := await _in_thread(lambda: _read(file)):
                yield part
        except OSError as error:
            raise StorageError(f"cannot read a stored blob: {error}") from error


def _read(file: BinaryIO) -> bytes:
    return file.read(PART)


async def _in_thread[Value](work: Callable[[], Value]) -> Value:
    """Do work in a thread, and wait for its end also when this is cancelled: else a file might be closed that is being
    read, and its descriptor might already be that of another one."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):  # a second cancellation
                await asyncio.wait([working])
        working.cancelled() or working.exception()
        raise


async def _abort(writer: AsyncWritableFile) -> None:
    with contextlib.suppress(BaseError, OSError):  # TimeoutError is an OSError
        async with asyncio.timeout(_ABORT_SECONDS):
            await writer.__aexit__(*sys.exc_info())
