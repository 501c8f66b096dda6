"""Measures how long the request of a client waits for a token for the cache's own requests."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_seconds: ContextVar[list[float] | None] = ContextVar("hubcache_token_wait", default=None)
"""The seconds that the present request has waited, in a list that tasks share which it starts."""


def begin() -> list[float]:
    """Begin to measure for the present task, and return a list whose one element is the seconds so far.

    A request that waits for a fetch which another one began waits for that one's token, too; that is not measured.
    """
    seconds = [0.0]
    _seconds.set(seconds)
    return seconds


@contextmanager
def waiting() -> Iterator[None]:
    """Add the time of the block to the seconds of the present request, if there is one."""
    seconds, before = _seconds.get(), time.monotonic()
    try:
        yield
    finally:
        if seconds is not None:
            seconds[0] += time.monotonic() - before
