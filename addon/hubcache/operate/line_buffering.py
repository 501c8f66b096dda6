"""Sets the buffering of standard output, to which several processes may print lines."""

import io
import sys


def print_whole_lines() -> None:
    """Write each printed line at once, with one system call.

    By default Python buffers 8 KiB of output to a file, and with PYTHONUNBUFFERED=1 it writes the end of a line
    separately, so that a line of another process may come in between.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, write_through=False)
