"""Answers that the owner gave a moment ago and that hold for whoever asks the same: a fleet that pulls one image.

Asking the owner costs two processes more than the answer itself. Only what everybody may see is kept, and in memory.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b

from cachetools import TTLCache

from ..serve.client_platform import platform_of
from ..serve.messages import Answer, Request, Result
from .epoch import Epoch

SECONDS = 1.0
"""How long an answer is repeated at most: what time alone makes wrong (a tag's lifetime) is late by no more."""

MAX_BYTES = 32 << 20
"""Bytes that are kept; beyond them the oldest are forgotten."""
MAX_COUNTED = 10_000
"""Answers of a client that are counted until the owner is told; beyond them it is asked again."""

_OVERHEAD = 2 << 10
"""Bytes of an answer beside its body, roughly."""

type _Key = bytes
"""A hash: what a client says may be long."""
_DECIDING = ("accept", "authorization", "if-none-match")
"""Headers that an answer may depend on, beside the platform in the user agent. A range is not answered from here."""


class AnswerCache:
    """What is kept holds for one epoch. What was repeated is counted, and told to the owner by `take_counts`."""

    def __init__(self, epoch: Epoch, clock: Callable[[], float] = time.monotonic) -> None:
        self._epoch = epoch
        self._number = epoch.number
        self._answers: TTLCache[_Key, Answer] = TTLCache(MAX_BYTES, SECONDS, clock, _size)
        self._counts: Counter[tuple[_Key, str]] = Counter()
        self._asked: dict[tuple[_Key, str], tuple[Request, Answer]] = {}

    def answer(self, request: Request) -> Answer | None:
        """The answer that the same question got, if it still holds."""
        epoch = self._epoch.number
        if epoch != self._number:
            self._forget(epoch)
            return None
        if not _asks_for_all(request):
            return None
        key = _key(request)
        answer = self._answers.get(key)
        asked = key, request.client
        if answer is None or (asked not in self._counts and len(self._counts) >= MAX_COUNTED):
            return None
        if asked not in self._counts:
            self._asked[asked] = replace(request, headers={}, query=""), answer  # nothing else is counted
        self._counts[asked] += 1
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
            if epoch != self._number:
                self._forget(epoch)
            if _size(answer) <= MAX_BYTES:
                self._answers[_key(request)] = replace(answer)

    def _forget(self, epoch: int) -> None:
        self._number = epoch
        self._answers.clear()

    def take_counts(self) -> list[tuple[Request, Answer, int]]:
        """Requests that were answered from here since the last time, how, and how often each."""
        counts = [(*self._asked[asked], count) for asked, count in self._counts.items()]
        self._counts.clear()
        self._asked.clear()
        return counts


def _asks_for_all(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and "range" not in request.headers


def _size(answer: Answer) -> int:
    return len(answer.body) + _OVERHEAD


def _key(request: Request) -> _Key:
    headers = [request.headers.get(name) for name in _DECIDING]
    platform = platform_of(request.headers.get("user-agent", ""))
    registry = request.registry
    what = (request.method, request.path, request.query, registry.host, registry.upstream, request.listener.value)
    return blake2b(
        repr((what, request.to_token_service, headers, platform)).encode(errors="surrogateescape"), digest_size=16
    ).digest()
