"""A worker process ends with its owner, whatever it does at that moment."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from hubcache.workers.owner_watch import OWNER
from support.http_client import TIMEOUT
from support.paths import ADDON

START = "from hubcache.workers.owner_watch import end_with_owner; end_with_owner(); print('ready', flush=True)"


@pytest.mark.parametrize("work", ["while True: pass", "import time; time.sleep(1000)"], ids=["busy", "waiting"])
def test_process_is_killed_when_its_owner_has_ended(work: str) -> None:
    owner, theirs = socket.socketpair()
    with owner, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{START}\n{work}"],
            env=os.environ | {OWNER: f"{theirs.fileno()},{theirs.fileno()}", "PYTHONPATH": str(ADDON)},
            stdout=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            owner.sendall(b"a message is no end")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
            owner.close()
            try:
                assert process.wait(TIMEOUT) == -signal.SIGKILL
            finally:
                process.kill()
