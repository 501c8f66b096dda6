"""Port numbers for programs that a test starts."""

import contextlib
import fcntl
import itertools
import os
import random
import socket
import tempfile
from pathlib import Path

_PORTS = range(12_000, 20_000)
"""Below the ephemeral ports and those of the stand-in Hub, so that a restarted program finds its port free again."""
_MAX_PROCESSES = 40


def _number_of_this_process() -> int:
    """Return a number below `_MAX_PROCESSES` that no other test process of this user has while this one runs."""
    for number in range(_MAX_PROCESSES):
        name = f"hubcache-test-ports-{os.getuid()}-{number}"
        lock = os.open(Path(tempfile.gettempdir(), name), os.O_RDWR | os.O_CREAT, 0o600)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number
        os.close(lock)
    raise OSError(f"more than {_MAX_PROCESSES} test processes run")


_own = _PORTS[_number_of_this_process() :: _MAX_PROCESSES]
"""Ports of this pytest process. Each has its own, because a port that another has chosen is free until used."""
_next = itertools.cycle(random.sample(_own, len(_own)))


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free and was not returned for a long time."""
    for port in itertools.islice(_next, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")
