"""Kills a process that stores, evicts and verifies at random steps, and inspects the store after each kill."""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .inspection import Findings, inspect
from .modules import run_module
from .victim import CAPACITY

_TIMEOUT_SECONDS = 120.0
_RECOUNT = 25
"""Kills after which a process runs to its end, to count the steps that it takes now."""


@dataclass
class Kills:
    """How many processes were killed, how many steps the last complete process took, and what was found."""

    count: int
    steps: int
    findings: Findings
    committed: int
    """How many blobs and manifests the killed processes stored."""


@dataclass(frozen=True)
class _Ended:
    """How a process ended: whether it was killed, how many steps it took if it was not, and how much it stored."""

    was_killed: bool
    steps: int
    committed: int


def kill_many(directory: Path, count: int, seed: int, say: Callable[[str], None]) -> Kills:
    """Start `count` processes one after the other on the store in `directory`, each with a random step to die at.

    A process that ends before its step is not counted as killed.
    """
    chosen = random.Random(seed)
    findings = Findings()
    expected: set[str] = set()
    damaged: set[str] = set()
    steps = killed = committed = 0
    for number in range(count):
        if number % _RECOUNT == 0:
            steps = _run(directory, chosen.randrange(1 << 30), 0, expected, damaged).steps
            say(f"{number} of {count} kills; a complete process takes {steps:,} steps")
        ended = _run(directory, chosen.randrange(1 << 30), chosen.randrange(1, steps), expected, damaged)
        killed += ended.was_killed
        committed += ended.committed
        found, expected = inspect(directory, CAPACITY, expected, damaged)
        findings.add(found)
    return Kills(killed, steps, findings, committed)


def _run(directory: Path, seed: int, step: int, expected: set[str], damaged: set[str]) -> _Ended:
    """Run one process that dies at `step` (0: never), and update `expected` and `damaged` from its output.

    `expected` are the digests that must be stored, `damaged` those of blobs in which a bit may be flipped.
    """
    done = run_module("victim", directory, seed, step, timeout=_TIMEOUT_SECONDS)
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the process that was to be killed ended with {done.returncode}:\n{done.stderr[-4000:]}")
    steps = committed = 0
    for line in done.stdout.splitlines():
        event, _, value = line.partition(" ")
        match event:
            case "committed":
                expected.add(value)
                committed += 1
            case "removing":
                expected.discard(value)
            case "damaging":
                expected.discard(value)
                damaged.add(value)
            case "steps":
                steps = int(value)
            case _:
                raise RuntimeError(f"the process wrote {line!r}")
    return _Ended(done.returncode != 0, steps, committed)
