"""Kills of a process that stores, evicts and verifies, at random steps; the store is looked at after each."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .inspection import Findings, inspect
from .victim import CAPACITY

_PATIENCE_SECONDS = 120.0


@dataclass
class Kills:
    """How many processes were killed, in how many different steps they could be, and what was found after them."""

    count: int
    steps: int
    findings: Findings


def kill_many(directory: Path, count: int, seed: int, say: Callable[[str], None]) -> Kills:
    """Kill `count` processes one after the other, which all work on the store in `directory`."""
    chosen = random.Random(seed)
    findings = Findings()
    expected: set[str] = set()
    damaged: set[str] = set()
    steps = 0
    for number in range(count):
        if number % 25 == 0:  # one that lives: how many steps are there now?
            steps = _run(directory, chosen.randrange(1 << 30), 0, expected, damaged)
            say(f"{number} of {count} kills; a life has {steps} steps")
        _run(directory, chosen.randrange(1 << 30), chosen.randrange(1, steps), expected, damaged)
        found, expected = inspect(directory, CAPACITY, expected, damaged)
        findings.add(found)
    return Kills(count, steps, findings)


def _run(directory: Path, seed: int, step: int, expected: set[str], damaged: set[str]) -> int:
    """One process; changes what is `expected` to be stored, and what may be `damaged`, by what it said.

    Returns how many steps it took.
    """
    done = subprocess.run(
        [sys.executable, "-m", "soaklib.victim", str(directory), str(seed), str(step)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
        text=True,
    )
    if done.returncode not in (0, -9):
        raise RuntimeError(f"the process that was to be killed ended with {done.returncode}:\n{done.stderr[-4000:]}")
    steps = 0
    for line in done.stdout.splitlines():
        what, _, rest = line.partition(" ")
        if what == "committed":
            expected.add(rest)
        elif what == "removing":
            expected.discard(rest)
        elif what == "damaging":
            expected.discard(rest)
            damaged.add(rest)
        else:
            steps = int(rest)
    return steps
