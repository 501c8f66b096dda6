"""A wall clock that is wrong, for one program. Its clock for durations and those of other programs stay as they are."""

from pathlib import Path

_CODE = """
import time

def moved(clock, offset):
    return lambda: clock() + offset

time.time = moved(time.time, {seconds})
time.time_ns = moved(time.time_ns, {seconds} * 10**9)
"""


def moved_clock(directory: Path, seconds: int) -> dict[str, str]:
    """Return the environment of a Python program whose `time.time` is this number of seconds ahead of the machine's.

    `datetime.now` and code that is not Python read the machine's clock.
    """
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(_CODE.format(seconds=seconds))
    return {"PYTHONPATH": str(directory)}
