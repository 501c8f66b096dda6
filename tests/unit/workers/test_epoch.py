"""The epoch that owner and workers share."""

from hubcache.workers.epoch import Epoch


def test_change_is_visible_to_all_processes_at_once() -> None:
    owner = Epoch.create()
    workers = [Epoch.attach(owner.fileno()) for _ in range(2)]
    seen = {owner.number}
    for _ in range(300):
        owner.advance()
        assert {worker.number for worker in workers} == {owner.number}
        seen.add(owner.number)
    assert len(seen) == 301
    for each in (*workers, owner):
        each.close()


def test_worker_that_attaches_later_reads_the_same_number() -> None:
    owner = Epoch.create()
    owner.advance()
    worker = Epoch.attach(owner.fileno())
    assert worker.number == owner.number
    worker.close()
    owner.close()
