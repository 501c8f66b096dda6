"""A server that is measured, and what is needed to start it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .certificates import Certificates
from .cpu_groups import CpuGroup
from .upstream import Upstream


@dataclass(frozen=True, slots=True)
class Setup:
    """What is needed to start a server.

    hubcache is run by the mitmproxy that is installed beside `python`, with `options` as further arguments. `other` is
    the other checkout of hubcache. `tools` contains programs that were installed for the benchmark. `workers` is the
    number of processes of servers that have such a setting.
    """

    directory: Path
    upstream: Upstream
    certificates: Certificates
    python: Path
    options: Sequence[str]
    tools: Path
    workers: int
    other: Path | None


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Clients request `origin`, through `proxy` (`HOST:PORT`) if there is one, with `headers`, and trust the authority in
    the directory `trust`. `registry` is the part of an image reference before the repository name.
    """

    name: str
    pid: int
    origin: str
    registry: str
    trust: Path
    proxy: str | None = None
    headers: tuple[str, ...] = field(default=())
    machine: CpuGroup | None = None
    """What the server and its clients run in, if their CPU time is limited."""
    started_in: float = 0.0
    """Seconds from the start of the program until it served requests; see `run_hubcache`."""
    status: str = ""
    """URL of the status page; empty for programs without one."""


def plain_server(name: str, pid: int, port: int, trust: Path) -> Server:
    """Return a server without TLS."""
    return Server(name, pid, f"http://127.0.0.1:{port}", f"127.0.0.1:{port}", trust)
