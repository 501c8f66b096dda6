"""Shares what registries answer: one node of the fleet asks, and the others read its answer in the bucket.

A node reads the object that the answer would be in. Without a usable answer there, it acquires a lease, asks the
registry and writes the answer; nodes that do not get the lease wait until its holder reports that it has released it,
and read the object then. All this only saves requests: while the bucket is down or slow, or when the node with the
lease is not ready in time, a node asks the registry itself.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..oci.errors import RegistryError
from .answer_objects import AnswerObjects, Version
from .answer_records import CONTENT_ERRORS
from .bucket import Bucket, BucketUnavailable
from .lease_waits import LeaseWaits
from .leases import Holder, Lease, Leases
from .values import Fields

WAIT_SECONDS = 5.0
"""Longest wait for the node that has the lease: a registry that is slower than this is asked by every node."""

_PAUSE_SECONDS = (0.08, 1.0)
"""First and longest pause between two reads of an object that another node is about to write. It grows, as many nodes
that read often would make a busy bucket slower."""

type Update = Callable[[Fields], Fields]
"""Returns the fields of an object with an answer added."""


@dataclass(frozen=True, slots=True)
class Write:
    """An answer to be written to the object `key`; `before` is the version that was read before the registry was asked.

    Without it, the answer is written whatever happened meanwhile.
    """

    key: str
    update: Update
    before: Version | None = None


@dataclass(frozen=True, slots=True)
class Question[Answer]:
    """A question to a registry.

    `find` returns the answer in a version of the object `key`, None if there is none that may be used; it raises the
    error that the registry answered. `ask` asks the registry, for a node that has read this version, and returns the
    answer and what is to be written. `writes_of_error` returns what is to be written when `ask` raises an error that is
    an answer of the registry about the content. `is_immutable`: the answer, once written, remains in use, as no push
    changes it. Only then may its lease be retired, see `retired_leases`: with the lease of an answer that was dropped,
    every node would ask the registry.
    """

    key: str
    lease: str
    find: Callable[[Version], Answer | None]
    ask: Callable[[Version], Awaitable[tuple[Answer, Sequence[Write]]]]
    writes_of_error: Callable[[Version, RegistryError], Sequence[Write]]
    is_immutable: bool = False


@dataclass(slots=True)
class _Turn:
    """A request of this node to a registry: with a lease if other nodes wait for the answer."""

    version: Version
    lease: Lease | None
    looked_at: float
    """When the request for the version was sent (monotonic clock)."""
    writes: Sequence[Write] = field(default=())
    has_immutable_answer: bool = False
    """Whether the registry has given an answer that no push changes."""


class SharedAnswers:
    """Finds answers in the bucket, and writes new ones in the background until `close`."""

    def __init__(self, bucket: Bucket, leases: Leases, waits: LeaseWaits) -> None:
        self._bucket = bucket
        self._objects = AnswerObjects(bucket)
        self._leases = leases
        self._waits = waits
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer[Answer](self, question: Question[Answer], with_lease: Callable[[Version], bool]) -> Answer:
        """Return a shared answer, or ask the registry; raises what `find` and `ask` raise.

        `with_lease` decides by the present version of the object. Without a lease, the nodes that ask at the same
        moment all ask the registry.
        """
        try:
            looked_at = time.monotonic()
            version = await self.read(question.key)
            found = question.find(version)
            if found is not None:
                return found
            acquired = (
                await self._bucket.in_time(lambda: self._leases.acquire(question.lease))
                if with_lease(version)
                else None
            )
        except BucketUnavailable:
            answer, _ = await question.ask(Version())
            return answer
        if isinstance(acquired, Holder):
            found, version = await self._wait(question, version, acquired)
            if found is not None:
                return found
        turn = _Turn(version, acquired if isinstance(acquired, Lease) else None, looked_at)
        try:
            return await self._take(question, turn)
        finally:
            if turn.lease is not None or turn.writes:
                self._spawn(self._finish(turn))

    async def read(self, key: str) -> Version:
        """Return the present version of an object; raises `BucketUnavailable`, also when the bucket is slow."""
        return await self._bucket.in_time(lambda: self._objects.read(key))

    async def mark_changed(self, key: str, *, creates: bool = True) -> None:
        """Drop the answers in an object after a push or delete, also those that nodes are requesting now.

        Without `creates`, nothing is written where there is no object. Raises `BucketUnavailable`.
        """
        if creates or await self._objects.exists(key):
            await self._objects.mark_changed(key)

    async def _wait[Answer](
        self, question: Question[Answer], version: Version, holder: Holder
    ) -> tuple[Answer | None, Version]:
        """Wait for the answer of another node; returns it, and the last version of the object.

        The answer is None when that node has released its lease without one, or takes too long. It is read once after
        that node has reported the release; where that node does not report it, repeatedly until `WAIT_SECONDS` have
        passed, and at least once.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_SECONDS
        is_released = await self._waits.wait(question.lease, holder, WAIT_SECONDS)
        is_held, pauses = not is_released, is_released is None
        pause, longest = _PAUSE_SECONDS
        with suppress(BucketUnavailable):
            while True:
                if pauses:
                    await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                    pause = min(1.5 * pause, longest)
                version = await self.read(question.key)
                found = question.find(version)
                if found is not None or not is_held or loop.time() >= deadline:
                    return found, version
                is_held = await self._bucket.in_time(lambda: self._leases.holder(question.lease)) is not None
                pauses = is_held
        return None, version

    async def _take[Answer](self, question: Question[Answer], turn: _Turn) -> Answer:
        """Ask the registry, unless another node had the lease before this one and has written its answer."""
        if turn.lease is not None and not (question.is_immutable and turn.lease.shows_absence_since(turn.looked_at)):
            with suppress(BucketUnavailable):
                turn.version = await self.read(question.key)
                found = question.find(turn.version)
                if found is not None:
                    return found
        try:
            answer, turn.writes = await question.ask(turn.version)
        except CONTENT_ERRORS as error:
            turn.writes = question.writes_of_error(turn.version, error)
            raise
        turn.has_immutable_answer = question.is_immutable
        return answer

    async def _finish(self, turn: _Turn) -> None:
        """Write the answers, then release the lease: nodes that wait for it look for them first."""
        are_written = False
        try:
            with suppress(BucketUnavailable):
                are_written = bool(turn.writes) and all([await self._write(write) for write in turn.writes])
        finally:
            if turn.lease is not None and are_written and turn.has_immutable_answer:
                turn.lease.retire()
            elif turn.lease is not None:
                await turn.lease.release()

    async def _write(self, write: Write) -> bool:
        """Write an answer, also where it is not known whether there is an object; returns whether it was written."""
        before = write.before
        if before is None:
            if await self._objects.create(write.key, write.update):
                return True
            before = await self._objects.read(write.key)
        return await self._objects.write(write.key, before, write.update)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait until answers are written and leases are released."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
