"""Requests to upstreams are counted for the work that caused them."""

import asyncio

from hubcache.transfer.request_count import count_request, counting


async def request() -> None:
    await asyncio.sleep(0)
    count_request()


async def test_requests_of_a_task_and_of_those_that_it_starts_are_counted() -> None:
    async def work(requests: int) -> int:
        with counting() as count:
            await asyncio.gather(*(request() for _ in range(requests)))
            count_request()
            return count.value

    assert await asyncio.gather(work(3), work(5)) == [4, 6]


async def test_requests_of_others_are_not_counted() -> None:
    other = asyncio.create_task(request())
    with counting() as count:
        await other
    count_request()
    assert count.value == 0
