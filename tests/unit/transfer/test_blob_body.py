"""Reports of received bytes to the event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest
from hubcache.transfer import blob_body
from hubcache.transfer.blob_body import BlobDownload
from hubcache.transfer.download_response import Consume
from support.users import until

PIECE = memoryview(b"piece")


class Steps:
    """A transfer that receives the pieces of a step, in a thread, once the step is allowed."""

    def __init__(self, *steps: int) -> None:
        self._steps = [(count, threading.Event()) for count in steps]
        self.failure: Exception | None = None
        self.reports: list[int] = []
        self.received = 0
        """Bytes that were reported as received, by the calls of `arrived`."""
        self.arrivals = 0
        self.body = BlobDownload(self, "registry", 0, None, lambda _, count: self.reports.append(count), None)

    async def receive(self, consume: Consume) -> bool:
        return await asyncio.to_thread(self._receive, consume)

    def _receive(self, consume: Consume) -> bool:
        for count, allowed in self._steps:
            assert allowed.wait(10)
            for _ in range(count):
                consume(PIECE)
        if self.failure is not None:
            raise self.failure
        return True

    def allow(self, step: int) -> None:
        self._steps[step][1].set()

    def end(self) -> None:
        for _, allowed in self._steps:
            allowed.set()

    def arrived(self) -> None:
        self.arrivals += 1
        self.received = sum(self.reports)


type Begin = Callable[[Steps], asyncio.Task[bool]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Begins to receive; transfers that are still running at the end of the test are ended."""
    running: list[tuple[Steps, asyncio.Task[bool]]] = []

    def receive(steps: Steps) -> asyncio.Task[bool]:
        task = asyncio.ensure_future(steps.body.receive(lambda _: True, steps.arrived))
        running.append((steps, task))
        return task

    yield receive
    for steps, task in running:
        steps.end()
        await asyncio.gather(task, return_exceptions=True)


async def test_bytes_are_reported_while_a_body_stalls(begin: Begin) -> None:
    steps = Steps(1, 2, 1)
    task = begin(steps)
    for step, total in ((0, 1), (1, 3)):
        steps.allow(step)
        await until(lambda total=total: steps.received == total * len(PIECE))  # type: ignore[misc]
    steps.end()
    assert await task
    assert steps.received == 4 * len(PIECE)


async def test_bytes_are_reported_together(monkeypatch: pytest.MonkeyPatch, begin: Begin) -> None:
    monkeypatch.setattr(blob_body, "_REPORT_SECONDS", 3600)
    steps = Steps(1, 100)
    task = begin(steps)
    steps.allow(0)
    await until(lambda: steps.arrivals)
    steps.end()
    assert await task
    assert steps.reports == [len(PIECE), 100 * len(PIECE)]
    assert steps.arrivals == 2


async def test_bytes_are_reported_before_the_error_of_a_transfer(monkeypatch: pytest.MonkeyPatch, begin: Begin) -> None:
    monkeypatch.setattr(blob_body, "_REPORT_SECONDS", 3600)
    steps = Steps(1, 1)
    steps.failure = RuntimeError("disk")
    task = begin(steps)
    steps.allow(0)
    await until(lambda: steps.arrivals)
    steps.end()
    with pytest.raises(RuntimeError, match="disk"):
        await task
    assert steps.received == 2 * len(PIECE)
