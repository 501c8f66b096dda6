"""Shows the fleet that the cache belongs to: the command `fleet`."""

from collections.abc import Mapping
from typing import Any

from .options import Directory, Json, connect
from .output import Column, Output, number
from .text import age, counted, percent, size

_OUTCOMES = ("ok", "absent", "conflict", "error")


def fleet(directory: Directory = None, is_json: Json = False) -> None:
    """Show the fleet: nodes, who holds which lease, bytes by tier, requests to the bucket and their cost, last sweep.

    Numbers of bytes and requests are those of this node since its start.
    """
    output = Output(is_json)
    report = connect(directory).get("/v1/fleet")
    output.document(report)
    if not is_json:
        _print(output, report)


def _print(output: Output, report: Mapping[str, Any]) -> None:
    if report["problem"]:
        output.line(f"problem: the bucket cannot be used: {report['problem']}", "bold red")
    output.fields(
        [
            ("bucket", report["bucket"]),
            ("used", _usage(report)),
            ("last sweep", _sweep(report["sweep"])),
            ("uploads", _uploads(report["uploads"])),
        ]
    )
    output.heading("nodes")
    output.table(
        [Column("node"), Column("address"), Column("version")],
        [
            (f"{node['id']} (this one)" if node["is_own"] else node["id"], node["address"], node["version"])
            for node in report["nodes"]
        ],
    )
    _print_leases(output, report["leases"])
    output.heading("content")
    total = sum(report["tiers"].values())
    output.table(
        [Column("from"), number("bytes"), number("share")],
        [(tier, size(count), percent(count, total)) for tier, count in report["tiers"].items()],
    )
    _print_requests(output, report["requests"])
    output.line(_cost(report["cost"]))


def _usage(report: Mapping[str, Any]) -> str:
    sweep, capacity = report["sweep"], report["capacity"]
    if sweep is None:
        return f"unknown before the first sweep, at most {size(capacity)}"
    share = percent(sweep["bytes"], capacity)
    return f"{size(sweep['bytes'])} of {size(capacity)} ({share}), {counted(sweep['objects'], 'object')}"


def _sweep(sweep: Mapping[str, Any] | None) -> str:
    if sweep is None:
        return "none is known"
    return f"{age(sweep['at'])} by {sweep['by']}, {counted(sweep['deleted'], 'object')} deleted"


def _uploads(uploads: Mapping[str, Any]) -> str:
    text = f"{uploads['stored']} stored ({size(uploads['bytes'])}), {uploads['queued']} queued"
    if uploads["refused"]:
        text += f", {uploads['refused']} refused because the bucket has no space"
    return text + (f", {uploads['failed']} failed" if uploads["failed"] else "")


def _print_leases(output: Output, leases: list[Mapping[str, Any]] | None) -> None:
    if leases is None:
        output.heading("leases")
        output.line("unknown, because the bucket does not answer")
    elif leases:
        output.heading("leases")
        output.table(
            [Column("lease"), Column("holder"), Column("renewed")],
            [
                (lease["name"], lease["node"] or "a newer version", _renewed(lease))
                for lease in sorted(leases, key=lambda lease: str(lease["name"]))
            ],
        )


def _renewed(lease: Mapping[str, Any]) -> str:
    return age(lease["renewed"]) + (", expired" if lease["has_expired"] else "")


def _print_requests(output: Output, requests: Mapping[str, Mapping[str, int]]) -> None:
    output.heading("requests to the bucket")
    output.table(
        [Column("kind"), *(number(outcome) for outcome in _OUTCOMES)],
        [(kind, *(outcomes.get(outcome, 0) for outcome in _OUTCOMES)) for kind, outcomes in sorted(requests.items())],
    )


def _cost(cost: Mapping[str, Any]) -> str:
    text = f"cost of requests: ${cost['dollars_of_pulls']:.4f} for {counted(cost['pulls'], 'pull')}"
    if cost["dollars_per_million_pulls"] is not None:
        text += f" (${cost['dollars_per_million_pulls']:.2f} per million)"
    background = cost["dollars"] - cost["dollars_of_pulls"]
    return f"{text}, ${background:.4f} for heartbeats and sweeps since the start; prices of {cost['prices']}"
