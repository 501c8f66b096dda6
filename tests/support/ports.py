"""Ports that a test may give to a program that it starts."""

import contextlib
import itertools
import os
import random
import socket

_WORKERS = 8
_PORTS = range(12_000, 20_000)
"""Below the ephemeral ports and those of the stand-in Hub, so that a restarted program finds its port free again."""
_own = _PORTS[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _WORKERS :: _WORKERS]
"""Of the pytest process: what another one has given away may be free until its program listens."""
_next = itertools.cycle(random.sample(_own, len(_own)))


def free_port() -> int:
    """A port of 127.0.0.1 that is free, and was not given away for a long time."""
    for port in itertools.islice(_next, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")
