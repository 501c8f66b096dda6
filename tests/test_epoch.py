"""The number that owner and workers share."""

from pathlib import Path

from hubcache.workers.epoch import Epoch


def test_each_change_is_seen_by_all_at_once(tmp_path: Path) -> None:
    owner = Epoch.create(tmp_path / "epoch")
    workers = [Epoch.find(tmp_path / "epoch") for _ in range(2)]
    seen = {owner.number}
    for _ in range(300):
        owner.advance()
        assert {worker.number for worker in workers} == {owner.number}
        seen.add(owner.number)
    assert len(seen) == 301


def test_worker_that_is_started_later_sees_the_same_number(tmp_path: Path) -> None:
    owner = Epoch.create(tmp_path / "epoch")
    owner.advance()
    assert Epoch.find(tmp_path / "epoch").number == owner.number
