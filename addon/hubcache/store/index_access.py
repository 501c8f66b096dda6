"""The open index, the one thread that writes to it, and what is wrong with them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..oci.errors import StorageError, StoreDamaged
from .index import Index


class IndexAccess:
    """Reads are quick and synchronous and never raise; what writes is awaited and raises `StorageError`."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        """Called when an answer that was right may be so no more."""
        self._problems: dict[str, str] = {}
        self._index: Index | None = None
        self._damaged = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")

    @property
    def is_open(self) -> bool:
        """Whether the directory is open."""
        return self._index is not None

    @property
    def problem(self) -> str | None:
        """Why content cannot be stored at present, or None. It ends when the thing that failed works again."""
        return next(iter(self._problems.values()), None)

    def failed(self, error: StorageError) -> None:
        """Content could not be staged; holds until some content is committed."""
        self._problems["files"] = str(error)

    async def _write[T](self, action: Callable[[], T]) -> T:
        """Run in the writer thread; the outcome decides whether the index counts as working."""
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._writer, action)
        except StorageError as error:
            self._note(error)
            raise
        finally:
            self.changed()
        self._problems.pop("index", None)
        return result

    def _read(self, key: str) -> object:
        """One row, or None; a store that cannot be read knows nothing."""
        if self._index is None:
            return None
        try:
            return self._index.get(key)
        except StorageError as error:
            self._note(error)
            return None

    def _note(self, error: StorageError) -> None:
        self._problems["index"] = str(error)
        self._damaged = self._damaged or isinstance(error, StoreDamaged)

    def _opened(self) -> Index:
        if self._index is None:
            raise StorageError(self.problem or "store is closed")
        return self._index
