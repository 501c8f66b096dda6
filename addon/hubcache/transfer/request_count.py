"""Counts the requests to upstreams that one piece of work causes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class RequestCount:
    """The number of requests so far."""

    def __init__(self) -> None:
        self.value = 0


_current: ContextVar[RequestCount | None] = ContextVar("request_count", default=None)


@contextmanager
def counting() -> Iterator[RequestCount]:
    """Count the requests of this task, and of tasks that it starts, while the context is open.

    Work that is shared with another task, such as a fill, is counted for the task that started it.
    """
    count = RequestCount()
    token = _current.set(count)
    try:
        yield count
    finally:
        _current.reset(token)


def count_request() -> None:
    """Count one request."""
    count = _current.get()
    if count is not None:
        count.value += 1
