"""Keys in the order of a number that changes often: a sorted list in short pieces.

A heap that is repaired when it is read would be shorter, but then one reading pays for all the changes since the last:
a store that had room for a month would stop for a second at its first eviction. Here every change costs the same few
microseconds, and reading in order costs nothing but the steps that are taken.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from itertools import chain

type Place[K] = tuple[float, int, K]
"""Rank, a number that no other place has (of equal ranks the older place comes first), and the key."""

_PIECE = 512
"""Places in a piece after a split; a piece is split at twice that."""


class Ranking[K]:
    """Keys by ascending rank. Whoever adds a key keeps the place that it was given, to discard it later."""

    def __init__(self) -> None:
        self._pieces: list[list[Place[K]]] = []
        self._lasts: list[Place[K]] = []
        self._places = 0

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def __iter__(self) -> Iterator[Place[K]]:
        """All places, the lowest rank first; nothing may be added or discarded meanwhile."""
        return chain.from_iterable(self._pieces)

    def fill(self, ranks: Iterable[tuple[K, float]]) -> list[Place[K]]:
        """Start anew with many keys at once; returns their places in the order of the argument."""
        places: list[Place[K]] = [(rank, number, key) for number, (key, rank) in enumerate(ranks)]
        ordered = sorted(places)
        self._pieces = [ordered[start : start + _PIECE] for start in range(0, len(ordered), _PIECE)]
        self._lasts = [piece[-1] for piece in self._pieces]
        self._places = len(ordered)
        return places

    def add(self, key: K, rank: float) -> Place[K]:
        """Add a key that is not there."""
        place = (rank, self._places, key)
        self._places += 1
        if not self._pieces:
            self._pieces.append([place])
            self._lasts.append(place)
            return place
        at = min(bisect_left(self._lasts, place), len(self._pieces) - 1)
        piece = self._pieces[at]
        insort(piece, place)
        self._lasts[at] = piece[-1]
        if len(piece) >= 2 * _PIECE:
            self._pieces.insert(at + 1, piece[_PIECE:])
            self._lasts.insert(at + 1, piece[-1])
            del piece[_PIECE:]
            self._lasts[at] = piece[-1]
        return place

    def discard(self, place: Place[K]) -> None:
        """Take out a place that `add` or `fill` gave; raises `KeyError` when it is not there."""
        at = bisect_left(self._lasts, place)
        piece = self._pieces[at] if at < len(self._pieces) else []
        within = bisect_left(piece, place)
        if within == len(piece) or piece[within] is not place:
            raise KeyError(place)
        del piece[within]
        if piece:
            self._lasts[at] = piece[-1]
        else:
            del self._pieces[at], self._lasts[at]
