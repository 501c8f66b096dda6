"""What is printed for people: lines of mitmproxy and of our own, by several processes, perhaps to a file."""

import io
import sys


def print_whole_lines() -> None:
    """Have each line go out at once and in one piece.

    Python keeps what goes to a file until there are 8 KiB of it, and with PYTHONUNBUFFERED=1 writes the end of a line
    on its own: another process's line comes in between.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
