"""What the workloads consist of: their contents, and a function that returns figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .clients import Download, download
from .images import Content
from .server import Server
from .upstream import Upstream

MB = 1_000_000
LAYERS = (150, 80, 60, 40, 25, 15, 12, 8, 5, 3, 1, 1)
"""MB of each layer of the usual image: 400 in total, with one layer much larger than the rest, as in real images."""


@dataclass(slots=True)
class Contents:
    """The content of one workload, and which servers have it stored. `quick` makes it smaller."""

    upstream: Upstream
    quick: bool
    _contents: dict[str, Content] = field(default_factory=dict)
    _stored: set[tuple[str, Content]] = field(default_factory=set)

    def blob(self, name: str, size: int, *, sparse: bool = False) -> Content:
        """The blob of this name, created at its first use; `size` in bytes."""
        if name not in self._contents:
            self._contents[name] = self.upstream.images.blob(name, size, sparse=sparse)
        return self._contents[name]

    def image(self, name: str, layers: Sequence[int] = ()) -> Content:
        """The image of this name, created at its first use with `layers` (in bytes) or with the usual ones, which have
        400 MB in total, or 100 MB if `quick`."""
        if name not in self._contents:
            usual = [size * MB // (4 if self.quick else 1) for size in LAYERS]
            self._contents[name] = self.upstream.images.image(name, list(layers) or usual)
        return self._contents[name]

    def store(self, server: Server, content: Content) -> None:
        """Make the server store this content, unless it already has."""
        if (server.name, content) not in self._stored:
            tag = [f"/v2/{content.name}/manifests/{content.tag}"] if content.tag else []
            download(server, [[*tag, *content.paths]])
            self.upstream.traffic_since(0)
            self._stored.add((server.name, content))


Figures = dict[str, float]
Measure = Callable[[Contents, Server, int], Figures]


@dataclass(frozen=True, slots=True)
class Workload:
    """`servers` are the default servers. `rounds` is the highest number of rounds, for workloads that take long."""

    name: str
    about: str
    measure: Measure
    servers: tuple[str, ...]
    rounds: int = 99


def rate(downloads: Sequence[Download]) -> float:
    """Return MB per second of all clients together."""
    began = min(one.started for one in downloads)
    return sum(one.bytes for one in downloads) / MB / (max(one.ended for one in downloads) - began)
