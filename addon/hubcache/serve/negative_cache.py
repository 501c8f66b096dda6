"""Remembers error answers of the upstream (content is missing, or refused to a view) for some time.

This keeps a fleet that requests a mistyped name from flooding the registry. A remembered answer expires at its time,
however often it is used, and at once when the repository is pushed to.
"""

import hashlib
from collections.abc import Callable

from cachetools import TLRUCache

from ..oci.errors import RegistryError
from .change_numbers import ChangeNumbers

MAX_BYTES = 16 << 20
"""Approximate bytes of all remembered answers; beyond it the least recently used ones are dropped, each of which costs
one more request upstream."""

_OVERHEAD = 1 << 10
"""Bytes of an entry in addition to the upstream's message."""

type _Key = tuple[str, str, bytes]


class NegativeCache:
    """Error answers by registry, repository and request key.

    The key is kept as a hash, since clients write parts of it (an `Accept` header). `clock` returns seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._changes = ChangeNumbers()
        self._errors: TLRUCache[_Key, tuple[float, RegistryError]] = TLRUCache(
            MAX_BYTES, lambda _, value, __: value[0], clock, lambda value: _weight(value[1])
        )

    def raise_remembered(self, host: str, repository: str, request_key: str) -> int:
        """Raise the remembered error; without one, return the change number that `remember` takes."""
        remembered = self._errors.get(_key(host, repository, request_key))
        if remembered is not None:
            raise remembered[1].without_traceback()
        return self.change_number(host, repository)

    def change_number(self, host: str, repository: str) -> int:
        """Return a number that changes when something is pushed to the repository or deleted from it."""
        return self._changes.current(host, repository)

    def remember(
        self, host: str, repository: str, request_key: str, error: RegistryError, seconds: float, change_number: int
    ) -> None:
        """Raise this error for the same request for `seconds`, unless the repository changed since `change_number`.

        A copy is kept: an error that was raised references the stack frames that it passed, with all their content.
        """
        if change_number == self.change_number(host, repository):
            expires_at = self._clock() + seconds
            self._errors[_key(host, repository, request_key)] = (expires_at, error.without_traceback())

    def forget(self, host: str, repository: str) -> None:
        """Drop all errors of a repository that something was pushed to or deleted from."""
        self._changes.advance(host, repository)
        for key in [key for key in self._errors if key[:2] == (host, repository)]:
            self._errors.pop(key, None)


def _key(host: str, repository: str, request_key: str) -> _Key:
    return host, repository, hashlib.sha256(request_key.encode(errors="surrogateescape")).digest()


def _weight(error: RegistryError) -> int:
    return _OVERHEAD + sum(len(str(value)) for value in vars(error).values())
