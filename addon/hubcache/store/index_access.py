"""Access to the open index: reads on the event loop, writes in one thread, and the current problems of the store."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..oci.errors import StorageError, StoreDamaged
from .index import Index


class IndexAccess:
    """The index while the store is open. Reads are quick, synchronous and never raise; writes are awaited and raise
    `StorageError`.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        """Called when cached answers may now be invalid."""
        self.current: Index | None = None
        """The open index; None while the store is closed."""
        self.is_damaged = False
        """Whether SQLite reported damage since the index was opened."""
        self.problems: dict[str, str] = {}
        """Why content cannot be stored at present, by the part that failed: "directory", "index" or "files"."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")

    @property
    def problem(self) -> str | None:
        """Why content cannot be stored at present, or None. A problem ends when the part that failed works again."""
        return next(iter(self.problems.values()), None)

    def staging_failed(self, error: StorageError) -> None:
        """Record that content could not be staged; this problem lasts until some content is committed."""
        self.problems["files"] = str(error)

    def opened(self) -> Index:
        """Return the open index; raises `StorageError` when the store is closed."""
        if self.current is None:
            raise StorageError(self.problem or "store is closed")
        return self.current

    def read(self, key: str) -> object:
        """Return the value of one row; None when there is no such row or the index cannot be read."""
        if self.current is None:
            return None
        try:
            return self.current.get(key)
        except StorageError as error:
            self.note_failure(error)
            return None

    async def write[T](self, action: Callable[[], T]) -> T:
        """Run `action` in the writer thread; its outcome decides whether the index counts as working."""
        try:
            result = await self.run(action)
        except StorageError as error:
            self.note_failure(error)
            raise
        finally:
            self.on_change()
        self.problems.pop("index", None)
        return result

    async def run[T](self, action: Callable[[], T]) -> T:
        """Run `action` in the writer thread; a failure does not change `problem`."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, action)

    def note_failure(self, error: StorageError) -> None:
        """Record that the index failed; this problem lasts until a write succeeds."""
        self.problems["index"] = str(error)
        self.is_damaged = self.is_damaged or isinstance(error, StoreDamaged)

    async def close(self) -> None:
        """Close the connections of both threads; the index may be opened again."""
        index, self.current = self.current, None
        if index is not None:
            await self.run(index.close)
            index.close()

    def shut_down(self) -> None:
        """End the writer thread."""
        self._writer.shutdown()
