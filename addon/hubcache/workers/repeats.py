"""Answers that the owner gave a moment ago and that hold for whoever asks the same: a fleet that pulls one image.

Asking the owner costs two processes more than the answer itself. Only what everybody may see is kept, and in memory.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from ..serve.messages import Answer, Request, Result
from .epoch import Epoch

SECONDS = 1.0
"""How long an answer is repeated at most: what time alone makes wrong (a tag's lifetime) is late by no more."""

MAX_BYTES = 32 << 20
"""Bytes that are kept; beyond them all are forgotten."""

_OVERHEAD = 2 << 10
"""Bytes of an answer beside its body, roughly."""

type _Key = tuple[object, ...]
_DECIDING = ("accept", "authorization", "if-none-match", "user-agent")
"""Headers that an answer may depend on (the user agent tells the platform). A range is not answered from here."""


class Repeats:
    """What is kept holds for one epoch. What was repeated is counted, and told to the owner by `take_counts`."""

    def __init__(self, epoch: Epoch, clock: Callable[[], float] = time.monotonic) -> None:
        self._epoch = epoch
        self._clock = clock
        self._number = epoch.number
        self._answers: dict[_Key, tuple[float, Answer]] = {}
        self._bytes = 0
        self._counts: Counter[_Key] = Counter()
        self._asked: dict[_Key, tuple[Request, Answer]] = {}

    def answer(self, request: Request) -> Answer | None:
        """The answer that the same question got, if it still holds."""
        epoch = self._epoch.number
        if epoch != self._number:
            self._forget(epoch)
            return None
        key = _key(request)
        until, answer = self._answers.get(key, (0.0, None))
        if answer is None or self._clock() >= until or not _asks_for_all(request):
            return None
        asked = (*key, request.client)
        self._counts[asked] += 1
        self._asked[asked] = request, answer
        return replace(answer)

    def keep(self, request: Request, answer: object, epoch: int) -> None:
        """The owner answered a request that was sent in this epoch; it is kept if it may be repeated."""
        if (
            isinstance(answer, Answer)
            and answer.source is None
            and answer.result in (Result.HIT, Result.LOCAL)
            and request.credentials is None
            and _asks_for_all(request)
            and epoch == self._epoch.number
        ):
            size = len(answer.body) + _OVERHEAD
            if epoch != self._number or self._bytes + size > MAX_BYTES:
                self._forget(epoch)
            self._bytes += size
            self._answers[_key(request)] = (self._clock() + SECONDS, replace(answer))

    def _forget(self, epoch: int) -> None:
        self._number = epoch
        self._answers.clear()
        self._bytes = 0

    def take_counts(self) -> list[tuple[Request, Answer, int]]:
        """Requests that were answered from here since the last time, how, and how often each."""
        counts = [(*self._asked[asked], count) for asked, count in self._counts.items()]
        self._counts.clear()
        self._asked.clear()
        return counts


def _asks_for_all(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and "range" not in request.headers


def _key(request: Request) -> _Key:
    headers = tuple(request.headers.get(name) for name in _DECIDING)
    return (request.method, request.path, request.query, request.registry, request.door, request.for_token, headers)
