"""Freed memory is returned to the system when the process is quiet, and not while it works."""

import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.operate import memory_release
from hubcache.operate.memory_release import MemoryRelease, find_malloc_trim
from support.required import missing
from support.users import until

MIB = 1 << 20


class ReleaseHarness:
    """A release whose processor time the test sets; `used` is what the process uses until each check."""

    def __init__(self) -> None:
        self.used = 0.0
        self.checks = self.trims = 0
        self._time = 0.0
        self.release = MemoryRelease(self._trim, self._processor_time)

    def _trim(self, pad: int) -> int:
        assert pad == 0
        self.trims += 1
        self._time += 100.0  # as if it took long: this is not what the process was busy with
        return 1

    def _processor_time(self) -> float:
        self.checks += 1
        self._time += self.used
        return self._time


@pytest.fixture
async def harness(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ReleaseHarness]:
    monkeypatch.setattr(memory_release, "SECONDS", 0.01)
    made = ReleaseHarness()
    yield made
    made.release.stop()


async def test_quiet_process_returns_memory_again_and_again(harness: ReleaseHarness) -> None:
    harness.release.start()
    await until(lambda: harness.trims >= 3)


async def test_busy_process_keeps_its_memory_until_it_is_quiet(harness: ReleaseHarness) -> None:
    harness.used = 0.006
    harness.release.start()
    await until(lambda: harness.checks >= 5)
    assert not harness.trims
    harness.used = 0.0
    await until(lambda: harness.trims)


async def test_stopped_release_does_nothing(harness: ReleaseHarness) -> None:
    harness.release.start()
    harness.release.stop()
    other = ReleaseHarness()
    other.release.start()
    await until(lambda: other.trims >= 3)
    other.release.stop()
    assert (harness.checks, harness.trims) == (1, 0)


async def test_nothing_is_done_with_another_c_library() -> None:
    release = MemoryRelease(None)
    release.start()
    release.stop()
    assert release._timer is None


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_glibc_returns_memory_between_objects_that_are_in_use() -> None:
    trim = find_malloc_trim()
    if trim is None:
        missing("not glibc")
    blocks = [b"x" * (64 << 10) for _ in range(1024)]
    between = [b for number, b in enumerate(blocks) if number % 16 == 0]
    del blocks
    before = resident_bytes()
    trim(0)
    assert before - resident_bytes() > 32 * MIB
    assert len(between) == 64
