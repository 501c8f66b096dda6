"""Background work of a node that ends with an error."""

import asyncio

import pytest
from hubcache.fleet.tasks import end_task, start_task
from support.users import until


async def test_task_that_fails_is_logged_once_and_can_be_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    task = start_task(fail(), "counting")
    await until(lambda: caplog.records)
    await end_task(task)
    (record,) = caplog.records
    assert record.getMessage() == "hubcache: background work ended with an error: counting"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_task_that_fails_while_it_ends_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise ZeroDivisionError

    task = start_task(fail(), "counting")
    await asyncio.sleep(0)
    await end_task(task)
    assert [record.getMessage() for record in caplog.records] == [
        "hubcache: background work ended with an error: counting"
    ]


async def test_running_task_is_cancelled_without_a_log(caplog: pytest.LogCaptureFixture) -> None:
    task = start_task(asyncio.sleep(3600), "waiting")
    await end_task(task)
    assert task.cancelled()
    assert caplog.records == []
