"""Reports the state of the program to systemd, by datagrams to the socket that it names (sd_notify(3))."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

logger = logging.getLogger("hubcache")

SOCKET = "NOTIFY_SOCKET"
_SEND_SECONDS = 1.0
"""How long a datagram may wait for a place in the receiver's queue."""
_STOP_MARGIN = 15.0
"""Seconds for the end of a stop, after the time for running downloads."""


class ServiceManager:
    """The service manager that started this process; without `NOTIFY_SOCKET` in the environment, nothing is sent.

    A report that cannot be sent is logged and otherwise ignored: clients can be served all the same.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = _address(environment.get(SOCKET, ""))
        self._watchdog = _watchdog_seconds(environment) if self._address else None
        self._timer: asyncio.TimerHandle | None = None

    def ready(self, status: str) -> None:
        """Report that clients are served, also after a reload; `status` is one line for `systemctl status`."""
        self._send("READY=1", f"STATUS={status}")
        if self._watchdog is not None and self._timer is None:
            self._reset_watchdog(self._watchdog)

    def reloading(self) -> None:
        """Report that the configuration is read again; `ready` reports the end of that."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, within: float) -> None:
        """Report that running downloads have up to `within` seconds, also where `TimeoutStopSec` is shorter."""
        microseconds = round((within + _STOP_MARGIN) * 1e6)
        self._send("STOPPING=1", "STATUS=Waiting for running downloads", f"EXTEND_TIMEOUT_USEC={microseconds}")

    def close(self) -> None:
        """Stop resetting the watchdog."""
        if self._timer is not None:
            self._timer.cancel()

    def _reset_watchdog(self, seconds: float) -> None:
        """Show the watchdog that the event loop runs: twice in its period, as sd_watchdog_enabled(3) recommends."""
        self._send("WATCHDOG=1")
        self._timer = asyncio.get_running_loop().call_later(seconds / 2, self._reset_watchdog, seconds)

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.sendto("\n".join(assignments).encode(), self._address)
        except OSError as error:
            logger.warning("hubcache: the service manager did not get %s: %s", assignments[0], error)


def _address(name: str) -> str:
    """Return the address of a Unix socket, whose name begins with `@` if it is abstract; empty for other sockets."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else ""


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Return the period within which the watchdog of this process must be reset; None without a watchdog."""
    microseconds, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or process not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1e6 or None
