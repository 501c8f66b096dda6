"""The figures that ours should reach, and whether it does. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from .stats import Summary

OURS, WORKERS, MANY = "ours", "ours-workers", "ours-many"
Results = Mapping[str, Mapping[str, Summary]]
"""Of one workload: server, figure → summary."""


@dataclass(frozen=True, slots=True)
class Target:
    """The median of `figure` of `ours` is to be between `least` and `most`; with `of`, as a multiple of that peer."""

    workload: str
    figure: str
    least: float | None = None
    most: float | None = None
    of: str | None = None
    ours: str = OURS

    def describe(self) -> str:
        """As it stands in the table."""
        bounds = [f"≥ {self.least:g}" for _ in (1,) if self.least is not None]
        bounds += [f"≤ {self.most:g}" for _ in (1,) if self.most is not None]
        return f"{self.ours}: {self.figure} {' and '.join(bounds)}{f' x {self.of}' if self.of else ''}"

    def value(self, results: Results) -> float | None:
        """What is compared; None when it was not measured."""
        ours = results.get(self.ours, {}).get(self.figure)
        if ours is None or self.of is None:
            return ours.median if ours else None
        peer = results.get(self.of, {}).get(self.figure)
        return ours.median / peer.median if peer and peer.median else None

    def reached(self, value: float) -> bool:
        """Whether this is good enough."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


WANTED = (
    Target("warm-blob-1", "MB/s", least=0.85, of="nginx"),
    Target("warm-blob-1", "MB/s", least=1.0, of="nginx"),
    Target("warm-blob-8", "MB/s", least=0.75, of="nginx"),
    Target("warm-blob-8", "MB/s", least=1.0, of="nginx", ours=WORKERS),
    Target("warm-blob-8", "MB/s", least=3.0, of="drayage", ours=WORKERS),
    Target("warm-blob-8", "MB/s", least=1.0, of="docker-registry", ours=WORKERS),
    Target("blob-new", "requests/s", least=0.35, of="nginx", ours=WORKERS),
    Target("blob-new", "p99 ms", most=40, ours=WORKERS),
    Target("manifest-new", "requests/s", least=0.35, of="nginx", ours=WORKERS),
    Target("manifest-new", "p99 ms", most=40, ours=WORKERS),
    Target("cold-blob", "fetches", least=1, most=1),
    Target("cold-blob", "last/lone", most=1.2),
    Target("cold-blob", "waited ms", most=100),
    Target("cold-image", "upstream x", most=1.005),
    Target("cold-image", "last/lone", most=1.2),
    Target("mixed", "upstream x", most=1.005),
    Target("cold-pull", "s", most=1.15, of="direct"),
    Target("cold-pull-gigabit", "s", most=1.15, of="direct"),
    Target("cold-pull-uplink", "s", most=1.15, of="direct"),
    Target("warm-pull", "upstream requests", most=0),
    Target("many-blobs", "p50 ms", most=1.2, of="ours", ours=MANY),
    Target("many-blobs", "start s", most=3.0, ours=MANY),
)
"""Besides memory, which is limited in every workload."""


def targets(workload: str) -> list[Target]:
    """Those of one workload."""
    memory = [Target(workload, "peak MB", most=200, ours=ours) for ours in (OURS, WORKERS)]
    return [target for target in WANTED if target.workload == workload] + memory
