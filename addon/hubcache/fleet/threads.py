"""Runs blocking work of the bucket's client in threads of its own.

A read of the bucket cannot be interrupted, and lasts until its time-out when the bucket stops answering. A pool of
threads would be occupied by such reads, and would be waited for at the end of the program.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future


def run_in_thread[Value](work: Callable[[], Value]) -> asyncio.Future[Value]:
    """Start a thread that does `work`, and return a future of its result; cancelling it does not stop the thread."""
    result: Future[Value] = Future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:  # raised again where the result is awaited
            result.set_exception(error)
        else:
            result.set_result(value)

    result.set_running_or_notify_cancel()
    threading.Thread(target=run, name="bucket", daemon=True).start()
    return asyncio.wrap_future(result)
