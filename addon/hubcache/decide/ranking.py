"""Keys in the order of a number that changes often: a sorted list in short pieces.

A heap that is repaired when it is read would be shorter, but then one read pays for all the changes since the last one:
a store that had free space for a month would pause for a second at its first eviction. Here every change takes the same
few microseconds, and reading in order costs only the entries that are read.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import batched, chain

type Entry[K] = tuple[float, int, K]
"""Rank, a number that no other entry has (of equal ranks the older entry comes first), and the key."""

_PIECE = 512
"""Entries in a piece after a split; a piece is split at twice that."""


class Ranking[K]:
    """Keys by ascending rank. The caller keeps the entry of each key that it adds, to discard it later."""

    def __init__(self) -> None:
        self._pieces: list[list[Entry[K]]] = []
        self._lasts: list[Entry[K]] = []
        """The last entry of each piece."""
        self._next_number = 0

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def __iter__(self) -> Iterator[Entry[K]]:
        """Return all entries, the lowest rank first; none may be added or discarded during the iteration."""
        return chain.from_iterable(self._pieces)

    def fill(self, ranks: Iterable[tuple[K, float]]) -> list[Entry[K]]:
        """Replace all entries by many keys at once; return their entries in the order of the argument."""
        entries: list[Entry[K]] = [(rank, number, key) for number, (key, rank) in enumerate(ranks)]
        self._pieces = [list(piece) for piece in batched(sorted(entries), _PIECE)]
        self._lasts = [piece[-1] for piece in self._pieces]
        self._next_number = len(entries)
        return entries

    def add(self, key: K, rank: float) -> Entry[K]:
        """Add a key that is not in the ranking."""
        entry = (rank, self._next_number, key)
        self._next_number += 1
        if not self._pieces:
            self._pieces.append([entry])
            self._lasts.append(entry)
            return entry
        at = min(bisect_left(self._lasts, entry), len(self._pieces) - 1)
        piece = self._pieces[at]
        insort(piece, entry)
        self._lasts[at] = piece[-1]
        if len(piece) >= 2 * _PIECE:
            self._pieces.insert(at + 1, piece[_PIECE:])
            self._lasts.insert(at + 1, piece[-1])
            del piece[_PIECE:]
            self._lasts[at] = piece[-1]
        return entry

    def discard(self, entry: Entry[K]) -> None:
        """Remove an entry that `add` or `fill` returned; raises `KeyError` when it is not in the ranking."""
        at = bisect_left(self._lasts, entry)
        piece = self._pieces[at] if at < len(self._pieces) else []
        within = bisect_left(piece, entry)
        if within == len(piece) or piece[within] is not entry:
            raise KeyError(entry)
        del piece[within]
        if piece:
            self._lasts[at] = piece[-1]
        else:
            del self._pieces[at], self._lasts[at]
