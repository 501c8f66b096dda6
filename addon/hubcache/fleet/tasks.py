"""The repeated work of a node in the background: an error that ends it is logged, and does not fail the node's stop."""

import asyncio
import logging
from collections.abc import Coroutine

logger = logging.getLogger("hubcache")


def start_task(work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
    """Return a task that does `work`; an error is logged when it occurs. `name` is for the log."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_error)
    return task


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end; one that ended with an error is no error here."""
    task.cancel()
    await asyncio.wait([task])


def _log_error(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.error("hubcache: background work ended with an error: %s", task.get_name(), exc_info=error)
