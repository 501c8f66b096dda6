"""The bucket's time as a node estimates it from the times of its own writes."""

import math

import pytest
from hubcache.fleet.clock import BucketClock

AHEAD = 600.0
"""Seconds by which the bucket's clock is ahead of the node's."""


class Clocks:
    """A node's two clocks, and the bucket's."""

    def __init__(self) -> None:
        self.local = 1_000_000.0
        self.monotonic = 50.0
        self.bucket = self.local + AHEAD

    def pass_seconds(self, seconds: float) -> None:
        self.local += seconds
        self.monotonic += seconds
        self.bucket += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def clock(clocks: Clocks) -> BucketClock:
    return BucketClock(lambda: clocks.local, lambda: clocks.monotonic)


def write(clocks: Clocks, clock: BucketClock, *, before: float = 0.02, after: float = 0.02) -> None:
    """Write an object; the bucket gives its time without the fraction."""
    sent = clock.ticks()
    clocks.pass_seconds(before)
    modified = float(math.floor(clocks.bucket))
    clocks.pass_seconds(after)
    clock.observe(modified, sent, clock.ticks())


def test_clock_before_the_first_write_is_the_local_one(clocks: Clocks, clock: BucketClock) -> None:
    assert clock.now() == clocks.local
    assert clock.to_bucket(5.0) == clock.to_local(5.0) == 5.0


def test_one_write_gives_the_time_to_half_a_second(clocks: Clocks, clock: BucketClock) -> None:
    clocks.pass_seconds(0.9)
    write(clocks, clock)
    assert clock.now() == pytest.approx(clocks.bucket, abs=0.55)
    clocks.pass_seconds(1000)
    assert clock.now() == pytest.approx(clocks.bucket, abs=0.55)


def test_several_writes_give_a_closer_time(clocks: Clocks, clock: BucketClock) -> None:
    for _ in range(10):
        write(clocks, clock)
        clocks.pass_seconds(10.13)
    assert clock.now() == pytest.approx(clocks.bucket, abs=0.15)


def test_slow_response_does_not_spoil_the_time(clocks: Clocks, clock: BucketClock) -> None:
    for _ in range(10):
        write(clocks, clock)
        clocks.pass_seconds(10.13)
    write(clocks, clock, after=8.0)
    assert clock.now() == pytest.approx(clocks.bucket, abs=0.15)


def test_times_are_converted_in_both_directions(clocks: Clocks, clock: BucketClock) -> None:
    write(clocks, clock)
    assert clock.to_bucket(clocks.local) == pytest.approx(clocks.bucket, abs=0.55)
    assert clock.to_local(clock.to_bucket(123.0)) == pytest.approx(123.0)


def test_local_clock_that_is_set_does_not_change_the_time(clocks: Clocks, clock: BucketClock) -> None:
    write(clocks, clock)
    clocks.local -= 3600
    assert clock.now() == pytest.approx(clocks.bucket, abs=0.55)
    assert clock.to_bucket(clocks.local) == pytest.approx(clocks.bucket, abs=0.55)


@pytest.mark.parametrize("jump", [-120.0, 120.0])
def test_bucket_clock_that_is_set_is_followed(clocks: Clocks, clock: BucketClock, jump: float) -> None:
    write(clocks, clock)
    clocks.bucket += jump
    write(clocks, clock)
    assert clock.now() == pytest.approx(clocks.bucket, abs=0.55)


def test_clock_that_drifts_is_followed(clocks: Clocks, clock: BucketClock) -> None:
    for _ in range(500):
        write(clocks, clock)
        clocks.pass_seconds(10.13)
        clocks.bucket += 0.001  # 100 parts in a million
    assert clock.now() == pytest.approx(clocks.bucket, abs=0.2)
