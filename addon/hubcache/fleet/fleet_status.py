"""What the status page, `/status.json`, the metrics and `hubcache fleet` show about a fleet."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node that is alive; `is_own` marks the one that reports."""

    id: str
    address: str
    version: str
    is_own: bool


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """The last sweep of the bucket: `at` in seconds since the epoch, `by` the id of a node, sizes in bytes."""

    at: float
    by: str
    bytes: int
    objects: int
    deleted: int


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """The uploads to the bucket: how many wait or run, and by outcome how many ended since the start."""

    queued: int
    stored: int
    refused: int
    failed: int
    bytes: int
    """Bytes that were stored in the bucket."""


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """A lease in the bucket: `node` is the holder's id, None when a newer version wrote it; `renewed` in seconds since
    the epoch."""

    name: str
    node: str | None
    renewed: float
    has_expired: bool


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """The fleet as one node sees it, without a request to the bucket. Numbers are since the start of this node."""

    bucket: str
    node: str
    problem: str | None
    """Why this node works alone at present; None while the bucket answers."""
    capacity: int
    """Bytes that the fleet may store in the bucket."""
    nodes: tuple[NodeStatus, ...]
    """The nodes whose heartbeats arrive; this node is the first."""
    leases: tuple[str, ...]
    """Names of the leases that this node holds."""
    requests: dict[str, dict[str, int]]
    """Requests to the bucket by kind and outcome."""
    requests_of_pulls: dict[str, int]
    """Those of them that were made for pulls, by kind: not heartbeats and sweeps."""
    received: dict[str, int]
    """Bytes of content that arrived, by tier: `bucket` and `peer`."""
    uploads: UploadStatus
    sweep: SweepStatus | None
    """The last sweep that this node knows of."""
