"""Concurrent requests share one run, which cancellation of a waiting task does not end; all get its failure."""

import asyncio

import pytest
from hubcache.transfer.coalesce import Coalescer


class Work:
    """Counts its runs; each ends when `go` is set."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = self.wait_stored = 0
        self.go = asyncio.Event()
        self.error = error

    async def __call__(self) -> int:
        self.begun += 1
        await self.go.wait()
        self.wait_stored += 1
        if self.error is not None:
            raise self.error
        return self.begun


async def test_concurrent_requests_share_one_run() -> None:
    coalescer, work = Coalescer[str, int](), Work()
    waiting = [asyncio.ensure_future(coalescer.run("k", work)) for _ in range(20)]
    await asyncio.sleep(0)
    work.go.set()
    assert await asyncio.gather(*waiting) == [1] * 20


async def test_other_keys_and_later_requests_have_runs_of_their_own() -> None:
    coalescer, work = Coalescer[str, int](), Work()
    work.go.set()
    assert [await coalescer.run("k", work), await coalescer.run("k", work)] == [1, 2]
    both = await asyncio.gather(coalescer.run("a", work), coalescer.run("b", work))
    assert sorted(both) == [3, 4]
    assert work.begun == 4


async def test_work_continues_when_all_waiting_tasks_are_cancelled() -> None:
    coalescer, work = Coalescer[str, int](), Work()
    waiting = [asyncio.ensure_future(coalescer.run("k", work)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    late = asyncio.ensure_future(coalescer.run("k", work))
    await asyncio.sleep(0)
    work.go.set()
    assert await late == 1
    assert (work.begun, work.wait_stored) == (1, 1)


async def test_failure_reaches_all_waiting_tasks_and_is_not_remembered() -> None:
    coalescer, work = Coalescer[str, int](), Work(KeyError("no"))
    work.go.set()
    results = await asyncio.gather(*(coalescer.run("k", work) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [KeyError] * 3
    work.error = None
    assert await coalescer.run("k", work) == 2


async def test_failure_that_no_task_waits_for_is_not_reported_as_unretrieved() -> None:
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    coalescer, work = Coalescer[str, int](), Work(KeyError("no"))
    task = asyncio.ensure_future(coalescer.run("k", work))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    work.go.set()
    with pytest.raises(KeyError):
        await coalescer.run("k", work)
    del task
    await asyncio.sleep(0)
    assert reported == []


async def test_work_can_be_started_without_waiting_for_it() -> None:
    coalescer, work = Coalescer[str, int](), Work()
    assert not coalescer.is_running("k")
    task = coalescer.start("k", work)
    assert coalescer.start("k", work) is task
    assert coalescer.is_running("k")
    assert not coalescer.is_running("other")
    work.go.set()
    assert await coalescer.run("k", work) == 1
    assert not coalescer.is_running("k")
