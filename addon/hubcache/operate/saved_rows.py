"""Keeps counts in memory and writes those that changed to rows of the store's index."""

from typing import Protocol

from ..store.index_access import IndexAccess

PREFIX = "history/"
"""Prefix of the keys of all rows."""


class Table(Protocol):
    """Counts that are written to a bounded number of rows."""

    name: str
    """The part of the keys that follows `PREFIX`."""
    changed: set[int]
    """The rows that are not written, by number."""

    def encode(self, number: int) -> str:
        """Return the text of a row."""

    def restore(self, number: int, text: object) -> None:
        """Add what was written earlier, unless it is damaged or older than what is in memory."""

    def mark_all_changed(self) -> None:
        """Have all rows written to another index."""


class SavedRows:
    """The rows of some tables, in the index that is open."""

    def __init__(self, *tables: Table) -> None:
        self._tables = {table.name: table for table in tables}
        self._index: object = None
        """The index that has all rows except the changed ones."""

    async def save(self, access: IndexAccess) -> None:
        """Write the rows that changed; read those of an earlier run first, once. Raises `StorageError`."""
        index = access.opened()
        if self._index is not index:
            if self._index is None:
                for key, value, _, _ in await access.run(lambda: list(index.rows(PREFIX))):
                    self._restore(key, value)
            for table in self._tables.values():
                table.mark_all_changed()
            self._index = index
        changed = [(table, number) for table in self._tables.values() for number in table.changed]
        if not changed:
            return
        rows: dict[str, object] = {_key(table, number): table.encode(number) for table, number in changed}
        await access.write(lambda: index.set_many(rows))
        for table, number in changed:
            if table.encode(number) == rows[_key(table, number)]:  # else it changed during the write
                table.changed.discard(number)

    def _restore(self, key: str, value: object) -> None:
        name, _, number = key.removeprefix(PREFIX).partition("/")
        table = self._tables.get(name)
        if table is not None and number.isdecimal() and key == _key(table, int(number)):
            table.restore(int(number), value)


def _key(table: Table, number: int) -> str:
    return f"{PREFIX}{table.name}/{number}"
