"""The figures that hubcache should reach. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from .stats import Summary

HUBCACHE, WORKERS, MANY_BLOBS = "hubcache", "hubcache-workers", "hubcache-many-blobs"
MIRROR, MIRROR_WORKERS = "hubcache-mirror", "hubcache-mirror-workers"
NODE, FLEET = "hubcache-node", "hubcache-fleet"
LIMITED, FLEET_LIMITED = "hubcache-limited", "hubcache-fleet-limited"
Results = Mapping[str, Mapping[str, Summary]]
"""Results of one workload: server → figure → summary over all rounds."""


@dataclass(frozen=True, slots=True)
class Target:
    """Bounds for the median of one figure of `server`; as a multiple of the figure of `reference`, if that is given.

    With `worst`, the bounds are for the highest value of all rounds instead of the median.
    """

    workload: str
    figure: str
    least: float | None = None
    most: float | None = None
    reference: str | None = None
    server: str = HUBCACHE
    worst: bool = False

    def __post_init__(self) -> None:
        assert not (self.worst and self.reference), "a worst value has no ratio"

    def describe(self) -> str:
        """The target as one line of text."""
        bounds = [f"≥ {self.least:g}" for _ in (1,) if self.least is not None]
        bounds += [f"≤ {self.most:g}" for _ in (1,) if self.most is not None]
        reference = f" x {self.reference}" if self.reference else ""
        worst = " in each round" if self.worst else ""
        return f"{self.server}: {self.figure} {' and '.join(bounds)}{reference}{worst}"

    def value(self, results: Results) -> float | None:
        """The value to compare with the bounds, or None if it was not measured."""
        measured = results.get(self.server, {}).get(self.figure)
        if measured is None:
            return None
        if self.reference is None:
            return measured.high if self.worst else measured.median
        reference = results.get(self.reference, {}).get(self.figure)
        return measured.median / reference.median if reference and reference.median else None

    def reached(self, value: float) -> bool:
        """Whether `value` is within the bounds."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


TARGETS = (
    Target("warm-blob-1", "MB/s", least=0.85, reference="nginx"),
    Target("warm-blob-1", "MB/s", least=1.0, reference="nginx"),
    Target("warm-blob-8", "MB/s", least=0.75, reference="nginx"),
    Target("warm-blob-8", "MB/s", least=1.0, reference="nginx", server=WORKERS),
    Target("warm-blob-8", "MB/s", least=3.0, reference="drayage", server=WORKERS),
    Target("warm-blob-8", "MB/s", least=1.0, reference="docker-registry", server=WORKERS),
    Target("blob-new", "requests/s", least=0.35, reference="nginx", server=WORKERS),
    Target("blob-new", "p99 ms", most=40, server=WORKERS),
    Target("manifest-new", "requests/s", least=0.35, reference="nginx", server=WORKERS),
    Target("manifest-new", "p99 ms", most=40, server=WORKERS),
    Target("mirror-blob-1", "MB/s", least=1.0, reference="nginx-plain", server=MIRROR),
    Target("mirror-blob-1", "MB/s", least=1.0, reference="nginx-plain", server=MIRROR_WORKERS),
    Target("mirror-blob-8", "MB/s", least=1.0, reference="nginx-plain", server=MIRROR),
    Target("mirror-blob-8", "MB/s", least=1.0, reference="nginx-plain", server=MIRROR_WORKERS),
    Target("mirror-manifest-new", "requests/s", least=1.0, reference="drayage-plain", server=MIRROR_WORKERS),
    Target("crowd", "makespan s", most=0.8, reference="nginx-cache"),
    Target("crowd", "upstream x", most=1.005),
    Target("cold-blob", "fetches", least=1, most=1),
    Target("cold-blob", "last/single", most=1.2),
    Target("cold-blob", "waited ms", most=100),
    Target("cold-image", "upstream x", most=1.005),
    Target("cold-image", "last/single", most=1.2),
    Target("mixed", "upstream x", most=1.005),
    Target("cold-pull", "s", most=1.15, reference="direct"),
    Target("cold-pull-gigabit", "s", most=1.15, reference="direct"),
    Target("cold-pull-uplink", "s", most=1.15, reference="direct"),
    Target("warm-pull", "upstream requests", most=0),
    Target("many-blobs", "p50 ms", most=1.2, reference=HUBCACHE, server=MANY_BLOBS),
    Target("many-blobs", "start s", most=3.0, server=MANY_BLOBS),
    Target("fleet-new-images", "upstream x", most=1.02, server=FLEET),
    Target("fleet-new-images", "last s", most=1.3, reference=HUBCACHE, server=FLEET),
    Target("fleet-new-images-limited", "last s", most=1.3, reference=LIMITED, server=FLEET_LIMITED),
    Target("fleet-kill", "failed pulls", most=0, server=FLEET, worst=True),
    Target("fleet-kill", "upstream without kill x", most=1.02, server=FLEET),
    Target("fleet-warm", "image MB/s", least=0.98, reference=HUBCACHE, server=NODE),
    Target("fleet-warm", "blob MB/s", least=0.98, reference=HUBCACHE, server=NODE),
    Target("fleet-warm", "bucket requests", most=0, server=NODE),
    Target("fleet-bucket-hit", "of obstore", least=0.7, server=FLEET),
    Target("fleet-bucket-hit-limited", "of obstore", least=0.7, server=FLEET),
)
"""All targets except that for memory, which applies to every workload."""


def targets_of(workload: str) -> list[Target]:
    """The targets of one workload."""
    memory = [Target(workload, "peak MB", most=200, server=server) for server in (HUBCACHE, WORKERS)]
    return [target for target in TARGETS if target.workload == workload] + memory
