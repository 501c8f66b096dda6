"""Finds out what the time of a pull was spent on.

Requests of a pull overlap. Each moment of the pull is divided equally among the requests that are running then, so that
the seconds add up to the duration of the pull.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ..serve.messages import Result
from .served_request import ServedRequest

AUTHENTICATION = "waiting for a token"
MANIFEST = "waiting for the registry's answer about a manifest"
DOWNLOAD = "downloading from the registry"
CLIENT = "sending to the client, which takes no more at a time"
CACHE = "in the cache itself"
BETWEEN = "between the client's requests"

_MAX_SPANS = 200
"""Number of spans that are kept; more are summed up at once."""

_SHORT_SECONDS = 0.01
"""Duration below which a request is not divided, and below which a gap between such requests is not counted."""

_FROM_REGISTRY = (Result.MISS, Result.BYPASS, Result.REVALIDATED, Result.STALE, Result.ERROR)
"""Results of answers that may have waited for the registry, if in vain."""


class Span(NamedTuple):
    """A part of a request: from `start` to `end`, in seconds since the epoch."""

    start: float
    end: float
    spent_on: str


def spans_of(request: ServedRequest) -> Iterator[Span]:
    """Return the parts of a request in order.

    A body waits alternately for its source and for its client. The times of each are put together: only the sums are
    known.
    """
    may_have_waited = request.result in _FROM_REGISTRY
    start = request.ended - request.duration
    if request.kind == "token":
        yield Span(start, request.ended, AUTHENTICATION)
        return
    first_byte = start + min(request.first_byte, request.duration)
    token = min(start + request.token_wait, first_byte)
    yield Span(start, token, AUTHENTICATION)
    waited_for = CACHE if not may_have_waited else DOWNLOAD if request.kind == "blob" else MANIFEST
    yield Span(token, first_byte, waited_for)
    if request.result is Result.BYPASS:  # mitmproxy forwards the body, and does not say what it waits for
        yield Span(first_byte, request.ended, DOWNLOAD)
        return
    source = min(first_byte + request.source_wait, request.ended)
    client = min(source + request.client_wait, request.ended)
    yield Span(first_byte, source, DOWNLOAD if may_have_waited else CACHE)
    yield Span(source, client, CLIENT)
    yield Span(client, request.ended, CACHE)


class PullTimes:
    """The times of the requests of one pull."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._sums: dict[str, float] = {}
        """What earlier spans were spent on."""
        self._short_start = self._short_end = 0.0
        """The last short requests in a row, which are not in `_spans` yet."""

    def add(self, request: ServedRequest) -> None:
        """Add a request that ended."""
        start = request.ended - request.duration
        if request.duration >= _SHORT_SECONDS:
            self._add_spans([span for span in spans_of(request) if span.end > span.start])
        elif self._short_start <= start <= self._short_end + _SHORT_SECONDS:
            self._short_end = max(self._short_end, request.ended)
        else:
            self._add_spans(self._short_requests())
            self._short_start, self._short_end = start, request.ended

    def _short_requests(self) -> list[Span]:
        return [Span(self._short_start, self._short_end, CACHE)] if self._short_end else []

    def _add_spans(self, spans: list[Span]) -> None:
        self._spans += spans
        if len(self._spans) > _MAX_SPANS:
            self._sums = _sum_up(self._sums, self._spans)
            self._spans = []

    def seconds(self) -> dict[str, float]:
        """Return the seconds of the pull by what they were spent on."""
        return _sum_up(self._sums, self._spans + self._short_requests())

    def slowest(self) -> tuple[str, float]:
        """Return what most of the time was spent on, and the seconds; an empty text if nothing was measured."""
        return max(self.seconds().items(), key=lambda item: item[1], default=("", 0.0))


def _sum_up(earlier: dict[str, float], spans: list[Span]) -> dict[str, float]:
    """Return the seconds that spans and earlier ones were spent on."""
    sums, running = dict(earlier), dict[str, int]()
    events = sorted(
        [(span.start, 1, span.spent_on) for span in spans] + [(span.end, -1, span.spent_on) for span in spans]
    )
    previous = events[0][0] if events else 0.0
    for at, change, spent_on in events:
        elapsed, count = at - previous, sum(running.values())
        if elapsed > 0:
            for name, number in running.items() if count else ((BETWEEN, 1),):
                sums[name] = sums.get(name, 0.0) + elapsed * number / (count or 1)
        running[spent_on] = running.get(spent_on, 0) + change
        previous = at
    return sums
