"""Caches answers of the owner for a moment: a fleet that pulls one image sends the same requests from many clients.

Asking the owner takes both processes more time than producing the answer. Only answers that every client may receive
are cached, and only if their body is in memory.
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
"""The longest time for which an answer is repeated. What only time changes, as the end of a tag's lifetime, is noticed
this much later."""

MAX_BYTES = 32 << 20
"""Bytes of all cached answers; beyond it the oldest are dropped."""

MAX_COUNTED = 10_000
"""Pairs of answer and client whose repeats are counted until they are reported; beyond it the owner is asked again."""

_OVERHEAD = 2 << 10
"""Approximate bytes of an answer in addition to its body."""

type _Key = bytes
"""A hash, since clients write parts of a request, of any length."""

_SELECTING_HEADERS = ("accept", "authorization", "if-none-match")
"""Headers on which an answer may depend, in addition to the platform in `User-Agent`. Ranges are not cached."""


class AnswerCache:
    """Answers of one epoch. Repeats are counted, and `take_counts` returns them for the owner."""

    def __init__(self, epoch: Epoch, clock: Callable[[], float] = time.monotonic) -> None:
        self._epoch = epoch
        self._number = epoch.number
        self._answers: TTLCache[_Key, Answer] = TTLCache(MAX_BYTES, SECONDS, clock, _size)
        self._counts: Counter[tuple[_Key, str]] = Counter()
        self._counted: dict[tuple[_Key, str], tuple[Request, Answer]] = {}

    def get(self, request: Request) -> Answer | None:
        """Return the answer to an equal request, if it is still valid, and count it."""
        epoch = self._epoch.number
        if epoch != self._number:
            self._clear(epoch)
            return None
        if not _is_cacheable(request):
            return None
        key = _key(request)
        answer = self._answers.get(key)
        counted = key, request.client
        if answer is None or (counted not in self._counts and len(self._counts) >= MAX_COUNTED):
            return None
        if counted not in self._counts:
            self._counted[counted] = replace(request, headers={}, query=""), answer  # the part that counting needs
        self._counts[counted] += 1
        return replace(answer, is_repeated=True)

    def put(self, request: Request, answer: object, epoch: int) -> None:
        """Cache the owner's answer to a request that was sent in this epoch, if it may be repeated."""
        if (
            isinstance(answer, Answer)
            and answer.source is None
            and answer.result in (Result.HIT, Result.LOCAL)
            and answer.kind != "setup"  # such a page depends on the client's address and on its `Host`
            and request.credentials is None
            and _is_cacheable(request)
            and epoch == self._epoch.number
        ):
            if epoch != self._number:
                self._clear(epoch)
            if _size(answer) <= MAX_BYTES:
                self._answers[_key(request)] = replace(answer)

    def _clear(self, epoch: int) -> None:
        self._number = epoch
        self._answers.clear()

    def take_counts(self) -> list[tuple[Request, Answer, int]]:
        """Return the requests that were answered from the cache since the last call, their answers and numbers."""
        counts = [(*self._counted[counted], count) for counted, count in self._counts.items()]
        self._counts.clear()
        self._counted.clear()
        return counts


def _is_cacheable(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and "range" not in request.headers


def _size(answer: Answer) -> int:
    return len(answer.body) + _OVERHEAD


def _key(request: Request) -> _Key:
    headers = [request.headers.get(name) for name in _SELECTING_HEADERS]
    platform = platform_of(request.headers.get("user-agent", ""))
    registry = request.registry
    target = (request.method, request.path, request.query, registry.host, registry.upstream, request.listener.value)
    return blake2b(
        repr((target, request.to_token_service, headers, platform)).encode(errors="surrogateescape"), digest_size=16
    ).digest()
