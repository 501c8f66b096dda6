"""The state of a fleet, for tests of what users see."""

from dataclasses import replace
from typing import Any

from hubcache.fleet.fleet_status import FleetStatus, NodeStatus, SweepStatus, UploadStatus

PLAIN = FleetStatus(
    bucket="s3://caches/prod",
    node="one-00c0ffee",
    problem=None,
    capacity=100 << 30,
    nodes=(
        NodeStatus("one-00c0ffee", "http://10.0.0.1:5002", "1.0.0", is_own=True),
        NodeStatus("two-00decade", "http://10.0.0.2:5002", "1.0.0", is_own=False),
    ),
    leases=("blob/sha256:" + "a" * 64,),
    requests={"get": {"ok": 700, "absent": 100}, "put": {"ok": 150, "conflict": 50}, "list": {"ok": 20}},
    requests_of_pulls={"get": 500, "put": 150},
    received={"bucket": 3 << 30, "peer": 1 << 30},
    uploads=UploadStatus(queued=2, stored=40, refused=1, failed=3, bytes=2 << 30),
    sweep=SweepStatus(at=1_700_000_000.0, by="two-00decade", bytes=60 << 30, objects=5000, deleted=12),
)


def fleet_status(**changes: Any) -> FleetStatus:
    """Return the state of a fleet of two nodes, with changes."""
    return replace(PLAIN, **changes)
