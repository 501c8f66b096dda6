"""The command: which parts to run, for how long, and the verdict."""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from .attacker import ATTACKS
from .endurance import Endurance
from .fuzz import fuzz_all
from .hostility import attack_all
from .kills import kill_many
from .report import row_of_attack, row_of_fuzz, rows_of_kills, rows_of_run
from .rows import Row, table

_REQUESTS = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; 1 when a promise does not hold."""
    options = _parser().parse_args(arguments)
    logging.getLogger("hubcache").addHandler(logging.NullHandler())  # of the damage that is done here
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    print(f"scripts/soak: --seed {seed}", flush=True)
    rows = []
    for row in _run(options, seed):
        print(f"{'ok  ' if row.holds else 'FAIL'} {row.promise}: {row.found}", flush=True)
        rows.append(row)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return int(not all(row.holds for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat a run; without it, a new one is chosen and printed")
    parser.add_argument("--kills", type=int, default=300, help="processes to kill while they store and evict")
    parser.add_argument("--program-kills", type=int, default=20, help="kills of the program and its workers under load")
    parser.add_argument("--troubles", type=int, default=34, help="upstream faults during the long run")
    parser.add_argument("--seconds", type=float, default=1200, help="length of the long run")
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS), help="hostile clients to run")
    parser.add_argument("--fuzz", type=float, default=120, help="seconds for which what strangers send is fuzzed")
    parser.add_argument("--requests", type=int, default=_REQUESTS, help="requests of clients in a run, at most")
    parser.add_argument("--json", type=Path, help="write the result to this file, from which scripts/readme takes it")
    return parser


def _run(options: argparse.Namespace, seed: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="hubcache-soak-") as directory:
        if options.kills:
            yield from rows_of_kills(kill_many(_folder(directory, "kills"), options.kills, seed, _say))
        if options.fuzz:
            yield row_of_fuzz(fuzz_all(seed, options.fuzz, _say))
        if options.attacks:
            yield from map(row_of_attack, attack_all(_folder(directory, "attacks"), options.attacks, _say))
        for name, seconds, troubles, kills in (
            ("killed", 0.0, 0, options.program_kills),
            ("long", options.seconds, options.troubles, 0),
        ):
            if seconds or kills:
                begun = time.monotonic()
                run = Endurance(_folder(directory, name), seed, options.requests, _say)
                outcome = run.run(seconds, troubles, kills)
                yield from rows_of_run(outcome, time.monotonic() - begun, kills)


def _folder(directory: str, name: str) -> Path:
    folder = Path(directory, name)
    folder.mkdir()
    return folder


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
