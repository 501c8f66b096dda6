"""Caches small answers from the store for a moment: many clients that pull one image send the same requests.

Finding an answer again in the store takes several times as long as repeating it, and a worker would have to ask the
owner. Only answers that every client may receive are cached, and only if their body is in memory.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from cachetools import TTLCache

from .client_platform import platform_of
from .messages import Answer, Request, Result

SECONDS = 1.0
"""The longest time for which an answer is repeated. What only time changes, as the end of a tag's lifetime, is noticed
this much later."""

MAX_BYTES = 32 << 20
"""Bytes of all cached answers; beyond it the oldest are dropped."""

_OVERHEAD = 2 << 10
"""Approximate bytes of an answer in addition to its body."""

type _Key = bytes
"""A hash, since clients write parts of a request, of any length."""

_SELECTING_HEADERS = ("accept", "authorization", "if-none-match")
"""Headers on which an answer may depend, in addition to the platform in `User-Agent`. Ranges are not cached."""


@dataclass(frozen=True, slots=True, eq=False)
class RecentAnswer:
    """A cached answer, equal only to itself."""

    _answer: Answer

    def repeat(self, *, without_owner: bool = False) -> Answer:
        """Return a copy of the answer, which may be modified; `without_owner` is its `is_repeated`."""
        kept = self._answer
        return Answer(
            kept.status,
            kept.headers,
            kept.result,
            kept.body,
            length=kept.length,
            size=kept.size,
            kind=kept.kind,
            error=kept.error,
            is_repeated=without_owner,
            content=kept.content,
        )


class AnswerCache:
    """Answers of one epoch. `epoch` returns the number of the current one: it differs from all earlier numbers after a
    change to what is stored, to who may read it, or to an option."""

    def __init__(self, epoch: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._current_epoch = epoch
        self._clock = clock
        self._clear(epoch())

    def get(self, request: Request) -> RecentAnswer | None:
        """Return the answer to an equal request, if it is still valid."""
        epoch = self._current_epoch()
        if epoch != self._epoch:
            self._clear(epoch)
            return None
        return self._answers.get(_key(request)) if _is_cacheable(request) else None

    def put(self, request: Request, answer: object, epoch: int) -> None:
        """Cache the answer to a request that was received in this epoch, if it may be repeated."""
        if (
            isinstance(answer, Answer)
            and answer.source is None
            and answer.result in (Result.HIT, Result.LOCAL)
            and answer.kind != "setup"  # such a page depends on the client's address and on its `Host`
            and request.credentials is None
            and _is_cacheable(request)
            and epoch == self._current_epoch()
        ):
            if epoch != self._epoch:
                self._clear(epoch)
            kept = RecentAnswer(RecentAnswer(answer).repeat())  # the caller may modify its own
            if _size(kept) <= MAX_BYTES:
                self._answers[_key(request)] = kept

    def _clear(self, epoch: int) -> None:
        self._epoch = epoch
        # A new one: `clear` takes a microsecond for each answer.
        self._answers: TTLCache[_Key, RecentAnswer] = TTLCache(MAX_BYTES, SECONDS, self._clock, _size)


def _is_cacheable(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and "range" not in request.headers


def _size(kept: RecentAnswer) -> int:
    return len(kept._answer.body) + _OVERHEAD


def _key(request: Request) -> _Key:
    headers = [request.headers.get(name) for name in _SELECTING_HEADERS]
    platform = platform_of(request.headers.get("user-agent", ""))
    registry = request.registry
    target = (request.method, request.path, request.query, registry.host, registry.upstream, request.listener.value)
    return blake2b(
        repr((target, request.to_token_service, headers, platform)).encode(errors="surrogateescape"), digest_size=16
    ).digest()
