"""Writes the challenges of registries to the store in the background."""

import asyncio

from ..oci.registry import Registry
from ..transfer.challenge import Challenge
from .best_effort import BestEffortWriter


class ChallengeWriter:
    """Writes challenges so that the requests that received them do not wait."""

    def __init__(self, writer: BestEffortWriter) -> None:
        self._writer = writer
        self._tasks: set[asyncio.Task[None]] = set()

    def remember(self, registry: Registry, challenge: Challenge) -> None:
        """Write the challenge of a registry."""
        work = self._writer.put_challenge(registry.host, challenge.render(), expires=registry.is_named_by_client)
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel what has not been written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
