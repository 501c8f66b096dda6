"""The history of the traffic: slots of minutes and hours that survive a restart, and clocks that jump."""

import json
from pathlib import Path

import pytest
from hubcache.oci.errors import StorageError
from hubcache.operate.history import DAY, HOUR, HOUR_SLOTS, MINUTE_SLOTS, WEEK, History
from hubcache.operate.traffic import Traffic
from hubcache.store.index import Index
from hypothesis import given
from hypothesis import strategies as st
from support.stores import opened_store

NOW = 1_800_000_000.0


class Fixture:
    """A history and the totals that it divides."""

    def __init__(self) -> None:
        self.totals = Traffic()
        self.history = History(self.totals)

    def count(self, now: float, requests: int = 1) -> None:
        self.totals.requests += requests
        self.history.record(now)

    def requests(self, now: float) -> tuple[int, int, int]:
        """Return the requests of the last hour, day and week."""
        ratios = self.history.ratios(now)
        return ratios["hour"]["requests"], ratios["day"]["requests"], ratios["week"]["requests"]


def test_traffic_is_counted_into_hour_day_and_week() -> None:
    it = Fixture()
    for age in (WEEK + HOUR, WEEK - HOUR, DAY + HOUR, DAY - HOUR, HOUR + 60, HOUR - 60, 0):
        it.count(NOW - age)
    assert it.requests(NOW) == (2, 4, 6)


def test_traffic_is_counted_once() -> None:
    it = Fixture()
    it.count(NOW, 5)
    for _ in range(3):
        it.history.record(NOW + 60)
    it.count(NOW + 60, 2)
    assert [point["requests"] for point in it.history.points(NOW + 60)["minutes"]] == [5, 2]


def test_saved_traffic_is_what_registries_did_not_send() -> None:
    it = Fixture()
    it.totals.count_answer("blob", "hit", 7)
    it.totals.count_answer("blob", "miss", 2)
    it.totals.count_answer("manifest", "revalidated", 1)
    it.totals.count_answer("blob", "bypass", 1)
    it.totals.count_answer("token", "local", 1)
    for status in ("307", "200", "error"):
        it.totals.count_upstream("blob", status)
    it.totals.count_upstream("token", "200")
    it.totals.count_sent("store", 700)
    it.totals.count_sent("fill", 300)
    it.totals.upstream_bytes += 100
    it.history.record(NOW)
    assert it.history.ratios(NOW)["hour"] == {
        "requests": 10,
        "hits": 8,
        "bytes": 1000,
        "bytes_from_store": 700,
        "upstream_requests": 2,
        "upstream_bytes": 100,
        "saved_requests": 8,
        "saved_bytes": 900,
    }


def test_prefetches_save_nothing() -> None:
    it = Fixture()
    it.totals.upstream_bytes += 100
    it.totals.count_upstream("blob", "200")
    it.history.record(NOW)
    hour = it.history.ratios(NOW)["hour"]
    assert (hour["saved_bytes"], hour["saved_requests"]) == (0, 0)


@given(st.lists(st.floats(0, 4e9), max_size=50), st.floats(0, 4e9))
def test_clock_that_jumps_is_no_error_and_memory_is_bounded(times: list[float], now: float) -> None:
    it = Fixture()
    for time in times:
        it.count(time)
    points = it.history.points(now)
    for kind, limit, seconds in (("minutes", MINUTE_SLOTS, 60), ("hours", HOUR_SLOTS, 3600)):
        starts = [point["start"] for point in points[kind]]
        assert starts == sorted(set(starts))
        assert len(starts) <= limit
        assert all(now - limit * seconds < start <= now for start in starts)
    assert sum(point["requests"] for point in points["hours"]) <= len(times)


def test_future_is_not_counted_until_its_time_comes() -> None:
    it = Fixture()
    it.count(NOW + DAY)
    assert it.requests(NOW) == (0, 0, 0)
    assert it.requests(NOW + DAY) == (1, 1, 1)


async def test_history_survives_a_restart(tmp_path: Path) -> None:
    first, second = Fixture(), Fixture()
    async with opened_store(tmp_path) as store:
        first.count(NOW - DAY - HOUR, 4)
        first.count(NOW, 2)
        await first.history.save(store.index)
    async with opened_store(tmp_path) as store:
        second.count(NOW + 1, 1)  # before the rows are read
        await second.history.save(store.index)
        assert second.requests(NOW + 1) == (3, 3, 7)
        await second.history.save(store.index)
        second.count(NOW + 2, 1)
        await second.history.save(store.index)
        assert second.requests(NOW + 2) == (4, 4, 8)
    third = Fixture()
    async with opened_store(tmp_path) as store:
        await third.history.save(store.index)
        assert third.requests(NOW + 2) == (4, 4, 8)


async def test_rows_are_bounded_and_written_only_when_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it, written = Fixture(), list[int]()
    set_many = Index.set_many

    def record(index: Index, rows: dict[str, object]) -> None:
        written.append(len(rows))
        set_many(index, rows)

    monkeypatch.setattr(Index, "set_many", record)
    async with opened_store(tmp_path) as store:
        for minute in range(10):
            it.count(NOW + 60 * minute)
        await it.history.save(store.index)
        await it.history.save(store.index)
        it.count(NOW + 60 * 9)
        await it.history.save(store.index)
        assert written == [11, 2]
        for minute in range(1000):
            it.count(NOW + 60 * minute)
            it.count(NOW + 3600 * minute)
        await it.history.save(store.index)
        assert store.index.current is not None
        assert len(list(store.index.current.rows("history/"))) == MINUTE_SLOTS + HOUR_SLOTS


async def test_failed_write_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = Fixture()
    async with opened_store(tmp_path) as store:
        it.count(NOW, 3)
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise StorageError("disk is full")

            patch.setattr(Index, "set_many", fail)
            with pytest.raises(StorageError, match="disk is full"):
                await it.history.save(store.index)
        await it.history.save(store.index)
    other = Fixture()
    async with opened_store(tmp_path) as store:
        await other.history.save(store.index)
    assert other.requests(NOW) == (3, 3, 3)


async def test_store_that_is_replaced_gets_the_whole_history(tmp_path: Path) -> None:
    it, other = Fixture(), Fixture()
    it.count(NOW - 600, 3)
    async with opened_store(tmp_path / "one") as store:
        await it.history.save(store.index)
    it.count(NOW, 1)
    async with opened_store(tmp_path / "two") as store:
        await it.history.save(store.index)
        assert it.requests(NOW) == (4, 4, 4)
        await other.history.save(store.index)
    assert other.requests(NOW) == (4, 4, 4)


async def test_unusable_store_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    it = Fixture()
    it.count(NOW)
    async with opened_store(tmp_path) as store:
        await store.index.close()
        with pytest.raises(StorageError):
            await it.history.save(store.index)
        store.open()
        await it.history.save(store.index)
    assert it.requests(NOW) == (1, 1, 1)


@pytest.mark.parametrize(
    "row",
    [
        *("", "{}", "[]", "null", '["x",1,1,1,1,1,1]', "[1]", "[[1],1,1,1,1,1,1]", "\x00", b"bytes"),
        *(json.dumps([int(NOW), *values]) for values in ([1] * 5, [1] * 7, [-1] * 6, [1.5] * 6, [True] * 6)),
        *(json.dumps([start, *[1] * 6]) for start in (int(NOW) + 1, int(NOW) - 60, -60)),
    ],
)
async def test_damaged_row_counts_nothing(tmp_path: Path, row: object) -> None:
    it = Fixture()
    place = int(NOW) // 60 % MINUTE_SLOTS
    async with opened_store(tmp_path) as store:
        assert store.index.current is not None
        store.index.current.set(f"history/minute/{place}", row)
        store.index.current.set("history/nothing", json.dumps([int(NOW), *[1] * 6]))
        it.count(NOW + 60)
        await it.history.save(store.index)
    assert it.requests(NOW + 60) == (1, 1, 1)
