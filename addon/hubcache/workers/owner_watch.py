"""Ends a worker process with its owner."""

import os
import select
import signal
import threading

OWNER = "HUBCACHE_WORKER"
"""The environment variable of a worker with the inherited descriptors of its socket to the owner and of the epoch.

A socket with a name would remain after an owner that is killed, and other programs could connect to it."""


def end_with_owner() -> None:
    """Kill this process when its owner has ended, from now on.

    A worker inherits the listening sockets. While it still starts, or is busy, the next owner could not open its ports.
    """
    owner, _ = os.environ[OWNER].split(",")
    hung_up = select.poll()
    hung_up.register(int(owner), 0)  # 0: POLLHUP alone, which is always reported

    def wait() -> None:
        hung_up.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="owner", daemon=True).start()
