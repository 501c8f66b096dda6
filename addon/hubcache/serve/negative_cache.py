"""What the upstream said is not there, or not for this reader: remembered for a while, so that a typo in a fleet is no
storm upstream. A remembered answer ends when its time is over, however often it is given, and at once by a push."""

import hashlib
from collections.abc import Callable

from cachetools import TLRUCache

from ..oci.errors import RegistryError
from .change_numbers import ChangeNumbers

MAX_BYTES = 16 << 20
"""Bytes of all remembered answers, roughly; beyond them the oldest are forgotten, which costs a question more."""

_OVERHEAD = 1 << 10
"""Bytes of an entry beside what the upstream said."""

type _Key = tuple[str, str, bytes]


class NegativeCache:
    """What was asked is kept as a hash: clients write it (an `Accept` header, say). `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._moves = ChangeNumbers()
        self._known: TLRUCache[_Key, tuple[float, RegistryError]] = TLRUCache(
            MAX_BYTES, lambda _, value, __: value[0], clock, lambda value: _weight(value[1])
        )

    def raise_remembered(self, host: str, repository: str, what: str) -> int:
        """Raise the remembered answer; where there is none, give what `remember` needs of the time of the question."""
        known = self._known.get(_key(host, repository, what))
        if known is not None:
            raise known[1].without_traceback()
        return self.change_number(host, repository)

    def change_number(self, host: str, repository: str) -> int:
        """Changes when something is pushed to the repository or deleted from it."""
        return self._moves.current(host, repository)

    def remember(self, host: str, repository: str, what: str, error: RegistryError, seconds: float, since: int) -> None:
        """Answer the same to the same question for so long, unless something was pushed or deleted `since` it was put.

        As a copy: an error that was raised holds the frames it came through, with all that was in them.
        """
        if since == self.change_number(host, repository):
            self._known[_key(host, repository, what)] = (self._clock() + seconds, error.without_traceback())

    def forget(self, host: str, repository: str) -> None:
        """Something was pushed to the repository, or deleted from it."""
        self._moves.advance(host, repository)
        for key in [key for key in self._known if key[:2] == (host, repository)]:
            self._known.pop(key, None)


def _key(host: str, repository: str, what: str) -> _Key:
    return host, repository, hashlib.sha256(what.encode(errors="surrogateescape")).digest()


def _weight(error: RegistryError) -> int:
    return _OVERHEAD + sum(len(str(value)) for value in vars(error).values())
