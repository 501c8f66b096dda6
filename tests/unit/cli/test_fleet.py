"""hubcache fleet: what a node knows about its fleet."""

import json
from dataclasses import replace
from typing import Any

from hubcache.cli.checks import bucket
from hubcache.cli.checks.finding import Finding, State
from hubcache.cli.checks.target import Target
from hubcache.fleet.fleet_status import FleetStatus
from hubcache.oci.image_name import ImageName
from hubcache.operate.fleet_report import report_fleet
from hubcache.operate.traffic import Traffic
from support.cli import ControlStandIn, Reply, status_report
from support.fleet_statuses import PLAIN, fleet_status

BLOB = "blob/sha256:" + "a" * 64


def report(state: FleetStatus = PLAIN, pulls: int = 1000, **changes: Any) -> dict[str, Any]:
    """Return what the control socket answers."""
    leases: list[dict[str, Any]] = [
        {"name": "sweep", "node": "two-00decade", "renewed": 1000.0, "has_expired": False},
        {"name": BLOB, "node": None, "renewed": 1000.0, "has_expired": True},
    ]
    traffic = Traffic(bytes_from_store=4 << 30, upstream_bytes=0)
    found: dict[str, Any] = json.loads(json.dumps(report_fleet(state, traffic, pulls) | {"leases": leases} | changes))
    return found


def shown(control: ControlStandIn, document: dict[str, Any]) -> str:
    control.replies["GET /v1/fleet"] = Reply(document)
    done = control.run("fleet")
    assert (done.exit_code, done.stderr) == (0, "")
    return done.stdout


def test_report_has_all_parts(control: ControlStandIn) -> None:
    text = shown(control, report())
    for words in (
        *("bucket:      s3://caches/prod\n", "used:        60.0 GiB of 100.0 GiB (60 %), 5000 objects\n"),
        *(" by two-00decade, 12 objects deleted\n", "uploads:     40 stored (2.0 GiB), 2 queued, 1 refused because"),
        *("one-00c0ffee (this one)  http://10.0.0.1:5002  1.0.0\n", "two-00decade             http://10.0.0.2:5002"),
        f"{BLOB}  a newer version  ",
        *("store     4.0 GiB   50 %\n", "bucket    3.0 GiB   38 %\n", "peer      1.0 GiB   12 %\n"),
        "get   700     100         0      0\n",
    ):
        assert words in text, text
    assert text.index(BLOB) < text.index("sweep  ")
    assert "problem" not in text


def test_cost_is_that_of_writes_reads_and_parts_of_uploads(control: ControlStandIn) -> None:
    """150 PUT and 256 parts at $5, and 500 GET at $0.40 per million; 50 PUT, 20 LIST and 300 GET in the background."""
    assert (
        "cost of requests: $0.0022 for 1000 pulls ($2.23 per million), $0.0005 for heartbeats and sweeps since the "
        "start; prices of Amazon S3 Standard"
    ) in shown(control, report())
    assert "cost of requests: $0.0022 for 0 pulls, $0.0005 for heartbeats" in shown(control, report(pulls=0))


def test_bucket_that_does_not_answer_is_a_problem(control: ControlStandIn) -> None:
    text = shown(control, report(fleet_status(problem="status 403", sweep=None), leases=None))
    assert text.startswith("problem: the bucket cannot be used: status 403\n")
    assert "used:        unknown before the first sweep, at most 100.0 GiB\n" in text
    assert "leases\nunknown, because the bucket does not answer\n" in text


def test_json_is_the_report(control: ControlStandIn) -> None:
    control.replies["GET /v1/fleet"] = Reply(report())
    assert json.loads(control.run("fleet", "--json").stdout) == report()


def test_cache_that_works_alone_has_no_fleet(control: ControlStandIn) -> None:
    control.replies["GET /v1/fleet"] = Reply({"error": "this cache works alone"}, 409)
    done = control.run("fleet")
    assert (done.exit_code, done.stderr) == (4, "hubcache: this cache works alone\n")


def findings(state: FleetStatus | None) -> list[Finding]:
    target = Target(ImageName.parse("debian"))
    fleet = None if state is None else report(state)
    target.report = status_report(fleet=fleet, now=PLAIN.sweep.at + 3600 if PLAIN.sweep else 0.0)
    return list(bucket.check_bucket(target))


def test_doctor_finds_a_sound_bucket() -> None:
    uploads = replace(PLAIN.uploads, refused=0)
    assert [(each.state, each.text) for each in findings(fleet_status(uploads=uploads))] == [
        (State.OK, "s3://caches/prod answers, 2 nodes")
    ]
    assert findings(None) == []


def test_doctor_warns_about_the_bucket_and_the_nodes() -> None:
    assert [(each.state, each.text) for each in findings(fleet_status(problem="status 403"))] == [
        (State.WARNING, "s3://caches/prod cannot be used: status 403")
    ]
    assert PLAIN.sweep is not None
    older = (PLAIN.nodes[0], replace(PLAIN.nodes[1], version="0.9.0"))
    state = fleet_status(nodes=older, sweep=replace(PLAIN.sweep, at=PLAIN.sweep.at - 86400))
    assert [each.text for each in findings(state) if each.state is State.WARNING] == [
        "nodes have the versions 0.9.0, 1.0.0",
        "1 upload found no space in the bucket",
        "the last sweep was 1 d ago",
    ]
