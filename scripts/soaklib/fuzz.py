"""Fuzzes the parsers of untrusted input, guided by coverage where atheris is installed.

`python -m soaklib.fuzz TARGET SEED SECONDS` fuzzes one target. Each target runs in its own process, because libFuzzer
ends the process that it runs in.
"""

import importlib.util
import random
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .modules import run_module

_IS_GUIDED = importlib.util.find_spec("atheris") is not None
_LONGEST_BYTES = 4096
_GRACE_SECONDS = 60.0
"""Time to import, instrument and end, beyond the seconds of fuzzing."""

_EXECUTED = re.compile(r"number_of_executed_units: *(\d+)")


@dataclass(frozen=True)
class Fuzz:
    """How many inputs were tried, and what was found."""

    inputs: int
    findings: list[str]
    is_guided: bool = _IS_GUIDED


def fuzz_all(seed: int, seconds: float, say: Callable[[str], None]) -> Fuzz:
    """Fuzz all targets, each for an equal share of `seconds`. A target that tried no input is a finding."""
    from support.fuzzing import TARGETS

    inputs, findings = 0, []
    for number in range(len(TARGETS)):
        say(f"fuzz: target {number + 1} of {len(TARGETS)}")
        share = seconds / len(TARGETS)
        done = run_module("fuzz", number, seed, share, timeout=share + _GRACE_SECONDS)
        output = done.stdout + done.stderr
        tried = inputs_tried(output)
        inputs += tried
        if done.returncode != 0 or not tried:
            findings.append(f"target {number}: {output[-2000:] or 'no output'}")
    return Fuzz(inputs, findings)


def inputs_tried(output: str) -> int:
    """How many inputs a fuzzing process tried, by its output; 0 when the output has no such line."""
    found = _EXECUTED.search(output)
    return int(found[1]) if found else 0


def main() -> None:
    """Fuzz one target. The line with the number of inputs has libFuzzer's format."""
    target, seed, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    if _IS_GUIDED:
        _fuzz_with_coverage(target, seed, seconds)
    else:
        from support import fuzzing

        fuzzing.TARGETS[:] = [fuzzing.TARGETS[target]]
        print(f"stat::number_of_executed_units: {fuzzing.run(seed, seconds)}")


def _fuzz_with_coverage(target: int, seed: int, seconds: float) -> None:
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
