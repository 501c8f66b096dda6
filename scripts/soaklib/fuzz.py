"""A fuzz of what strangers send, guided by coverage where atheris is: `python -m soaklib.fuzz TARGET SEED SECONDS`.

Each target has a process of its own: libFuzzer ends the process that it runs in.
"""

import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_IS_GUIDED = importlib.util.find_spec("atheris") is not None
_LONGEST_BYTES = 4096
_GRACE_SECONDS = 60.0
_EXECUTED = re.compile(r"number_of_executed_units: *(\d+)")


@dataclass(frozen=True)
class Fuzz:
    """How many inputs were tried, and what was found."""

    inputs: int
    findings: list[str]
    is_guided: bool = _IS_GUIDED


def fuzz_all(seed: int, seconds: float, say: Callable[[str], None]) -> Fuzz:
    """Each target for its share of so many seconds."""
    from support.fuzzing import TARGETS

    inputs, findings = 0, []
    for number in range(len(TARGETS)):
        say(f"fuzz: target {number + 1} of {len(TARGETS)}")
        done = _run(number, seed, seconds / len(TARGETS))
        found = _EXECUTED.search(done.stdout + done.stderr)
        inputs += int(found[1]) if found else 0
        if done.returncode != 0 or not found:
            findings.append(f"target {number}: {(done.stdout + done.stderr)[-2000:]}")
    return Fuzz(inputs, findings)


def _run(target: int, seed: int, seconds: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "soaklib.fuzz", str(target), str(seed), str(seconds)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + _GRACE_SECONDS,
        check=False,
    )


def main() -> None:
    """One target. The line with the number of inputs is libFuzzer's own."""
    target, seed, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    if _IS_GUIDED:
        _guided(target, seed, seconds)
    else:
        from support import fuzzing

        fuzzing.TARGETS[:] = [fuzzing.TARGETS[target]]
        print(f"stat::number_of_executed_units: {fuzzing.run(seed, seconds)}")


def _guided(target: int, seed: int, seconds: float) -> None:
    import atheris

    with atheris.instrument_imports(include=["hubcache"]):
        from support import fuzzing

    check, samples, _ = fuzzing.TARGETS[target]

    def try_one(data: bytes) -> None:
        check(data)

    with tempfile.TemporaryDirectory(prefix="hubcache-fuzz-") as folder:
        for number, sample in enumerate(samples):
            Path(folder, str(number)).write_bytes(sample)
        limits = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={_LONGEST_BYTES}", f"-seed={seed or 1}"]
        atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={folder}/", folder], try_one)
        random.seed(seed)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
