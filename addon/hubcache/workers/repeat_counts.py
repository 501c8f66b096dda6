"""Counts the answers that a worker repeated without the owner, until they are reported to it."""

from dataclasses import replace

from ..serve.answer_cache import RecentAnswer
from ..serve.messages import Answer, Request

MAX_COUNTED = 10_000
"""Pairs of answer and client whose repeats are counted until they are reported; beyond it the owner is asked again."""

_MAX_ACCEPT = 512
"""Characters of an `Accept` that is reported: with a longer one, requests do not count for the refresh of a tag."""


class RepeatCounts:
    """Repeats by answer and client; `take` returns them for the owner."""

    def __init__(self) -> None:
        self._counts: dict[tuple[RecentAnswer, str], int] = {}
        self._requests: dict[tuple[RecentAnswer, str], Request] = {}

    def add(self, recent: RecentAnswer, request: Request) -> bool:
        """Count an answer that is repeated to this request; returns False if it must not be, as it cannot be
        counted."""
        key = recent, request.client
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) >= MAX_COUNTED:
                return False
            self._requests[key] = _counted_part(request)
        self._counts[key] = (count or 0) + 1
        return True

    def take(self) -> list[tuple[Request, Answer, int]]:
        """Return the requests that were counted since the last call, their answers and numbers."""
        counts = [(self._requests[key], key[0].repeat(), count) for key, count in self._counts.items()]
        self._counts.clear()
        self._requests.clear()
        return counts


def _counted_part(request: Request) -> Request:
    """Return the part of a request that counting needs: clients write the others, of any length."""
    accept = request.headers.get("accept", "*/*")
    return replace(request, headers={"accept": accept} if len(accept) <= _MAX_ACCEPT else {}, query="")
