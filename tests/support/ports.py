"""Port numbers for programs that a test starts."""

import contextlib
import itertools
import os
import random
import socket

_MAX_PYTEST_WORKERS = 8
_PORTS = range(12_000, 20_000)
"""Below the ephemeral ports and those of the stand-in Hub, so that a restarted program finds its port free again."""
_own = _PORTS[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _MAX_PYTEST_WORKERS :: _MAX_PYTEST_WORKERS]
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
