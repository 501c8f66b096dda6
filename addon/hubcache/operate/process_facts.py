"""Facts about the running program that `hubcache doctor` needs: its listeners, files, versions and limits."""

import os
import platform
import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A listening socket for clients; an empty `host` or `::` means all addresses of this machine."""

    kind: Literal["proxy", "mirror", "status"]
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What does not change while the program runs.

    `untested` says why mitmproxy's internals are not used, if so. `config_file` need not exist.
    """

    listeners: tuple[ListenAddress, ...] = ()
    ca_certificate: Path | None = None
    config_file: Path | None = None
    mitmproxy: str = ""
    untested: str | None = None

    def addresses(self) -> list[dict[str, Any]]:
        """Return the listeners as JSON."""
        return [asdict(listener) for listener in self.listeners]

    def report(self) -> dict[str, Any]:
        """Return all other facts as JSON, with the present number of open descriptors."""
        return {
            "pid": os.getpid(),
            "user": os.geteuid(),
            "python": platform.python_version(),
            "mitmproxy": self.mitmproxy,
            "untested": self.untested,
            "ca_certificate": self.ca_certificate and str(self.ca_certificate),
            "config_file": self.config_file and str(self.config_file),
            "descriptors": {"limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "open": open_descriptors()},
        }


def open_descriptors() -> int | None:
    """Return the number of open descriptors, None where the system has no list of them."""
    try:
        return sum(1 for _ in _DESCRIPTORS.iterdir())
    except OSError:
        return None
