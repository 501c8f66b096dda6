"""Joins a fleet at start, or later when the bucket did not answer at start."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ..oci.errors import ConfigError
from .bucket import Bucket, BucketUnavailable
from .tasks import end_task, start_task

logger = logging.getLogger("hubcache")

_START_SECONDS = 30.0
"""The start of a node waits this long for the bucket; clients must not wait for a bucket that is down."""

_RETRY_SECONDS = 10.0

_NOT_EXAMINED = "it did not answer at the start, and is tried again every 10 seconds"


class Joining:
    """Closes the bucket to requests until `examine` has found that it can be used, and calls `join` then.

    `examine` raises `ConfigError` when the bucket does not keep a promise on which the fleet depends, and
    `BucketUnavailable` when it does not answer. `join` may raise that too; both are then called again.
    """

    def __init__(
        self, name: str, bucket: Bucket, examine: Callable[[], Awaitable[None]], join: Callable[[], Awaitable[None]]
    ) -> None:
        self._name = name
        self._bucket = bucket
        self._examine = examine
        self._join = join
        self._task: asyncio.Task[None] | None = None
        bucket.closed_because = _NOT_EXAMINED

    async def start(self) -> None:
        """Join, or keep trying in the background while the bucket does not answer; raises the `ConfigError`."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._try_to_join()
        except (BucketUnavailable, TimeoutError) as error:
            logger.warning("hubcache: working alone until the bucket answers: %s: %s", self._name, _reason(error))
            self._bucket.closed_because = _NOT_EXAMINED
            self._task = start_task(self._join_later(), name="joining the fleet")

    async def _try_to_join(self) -> None:
        await self._examine()
        self._bucket.closed_because = None
        await self._join()

    async def _join_later(self) -> None:
        while True:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                await self._try_to_join()
            except BucketUnavailable:
                self._bucket.closed_because = _NOT_EXAMINED
                continue
            except ConfigError as error:
                logger.error("hubcache: working alone: %s", error)
                self._bucket.closed_because = str(error)
                return
            logger.info("hubcache: the bucket answers: %s", self._name)
            return

    async def close(self) -> None:
        """Stop trying."""
        if self._task is not None:
            await end_task(self._task)


def _reason(error: BucketUnavailable | TimeoutError) -> str:
    return str(error) or f"no answer within {_START_SECONDS:g} seconds"
