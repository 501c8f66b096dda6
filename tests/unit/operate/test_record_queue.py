"""Records are processed soon, together and in their order."""

from hubcache.operate.record_queue import RecordQueue
from support.users import until


async def test_calls_are_made_soon_in_their_order() -> None:
    queue, made = RecordQueue(), list[int]()
    for number in range(3):
        queue.add(made.append, number)
    assert made == []
    await until(lambda: made)
    assert made == [0, 1, 2]
    queue.add(made.append, 3)
    await until(lambda: len(made) == 4)


async def test_flush_makes_the_calls_now_and_once() -> None:
    queue, made = RecordQueue(), list[int]()
    queue.add(made.append, 1)
    queue.flush()
    queue.flush()
    assert made == [1]
