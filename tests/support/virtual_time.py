"""An event loop whose time does not pass by itself: a test of hours takes milliseconds, and is the same each time."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

START = 1_700_000_000.0


class _Selector(selectors.SelectSelector):
    """Advances the time of the loop instead of waiting."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen: every task waits for another one")
        self.passed += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Threads are not started: their work is done at once."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.passed

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()
        future.set_result(func(*args))
        return future


class VirtualClock:
    """The time of the running loop, as a bucket's clock that a node knows with an error of `ahead` seconds."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    def now(self) -> float:
        return virtual_now() + self.ahead


def virtual_now() -> float:
    """Return the seconds since the epoch in the running loop."""
    return START + asyncio.get_running_loop().time()


def run[Result](main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def in_virtual_time[**Arguments](
    test: Callable[Arguments, Coroutine[Any, Any, None]],
) -> Callable[Arguments, None]:
    """Make a test that runs in virtual time of a coroutine function."""

    @wraps(test)
    def run_test(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        run(test(*args, **kwargs))

    return run_test
