"""Lines reach a file immediately and undivided, regardless of Python's buffering."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ADDON

PROGRAM = """
import os, sys
from hubcache.operate.line_buffering import print_whole_lines

print_whole_lines()
for number in range(300):
    print("x" * 50, sys.argv[1], number)
os._exit(0)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_lines_of_several_processes_are_written_immediately_and_undivided(tmp_path: Path, unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ADDON)}
    with (tmp_path / "log").open("ab") as log:
        writers = [
            subprocess.Popen([sys.executable, "-c", PROGRAM, name], stdout=log, env=environment) for name in "abcd"
        ]
        assert [writer.wait() for writer in writers] == [0] * 4
    wanted = {f"{'x' * 50} {name} {number}" for name in "abcd" for number in range(300)}
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == len(wanted)
    assert set(lines) == wanted
