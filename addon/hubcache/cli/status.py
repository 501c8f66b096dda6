"""Shows the state of the cache: the command `status`."""

from collections.abc import Mapping
from typing import Any

from ..operate.version import version
from .options import Directory, Json, connect
from .output import Column, Output, number
from .text import age, counted, duration, percent, size

_PULLS = 10
_IMAGES = 5


def status(directory: Directory = None, is_json: Json = False) -> None:
    """Show what the cache does: problems, store, hit ratio, upstreams, rate limit, pulls and downloads."""
    output = Output(is_json)
    report = connect(directory).get("/v1/status")
    if report["version"] != version():
        output.warning(f"the cache runs version {report['version']}, this command is version {version()}")
    output.document(report)
    if not is_json:
        print_report(output, report)


def print_report(output: Output, report: Mapping[str, Any]) -> None:
    """Print a status report for people."""
    for problem in report["problems"]:
        output.line(f"problem: {problem}", "bold red")
    store = report["store"]
    output.fields(
        [
            ("hubcache", f"{report['version']}, started {age(report['started'], report['now'])}"),
            ("store", store["directory"]),
            ("used", _usage(store)),
        ]
    )
    output.heading("answers")
    _print_ratio(output, report["ratio"])
    _print_upstreams(output, report)
    _print_images(output, report["images"], report["now"])
    _print_fills(output, report["fills"], report["now"])
    _print_pulls(output, report["pulls"], report["now"])


def _usage(store: Mapping[str, Any]) -> str:
    used, capacity = store["bytes"], store["capacity"]
    return f"{size(used)} of {size(capacity)} ({percent(used, capacity)}), {counted(store['objects'], 'object')}"


def _print_ratio(output: Output, ratio: Mapping[str, Any]) -> None:
    output.table(
        [
            *(Column("last"), number("requests"), number("hits"), number("sent"), number("from the store")),
            *(number("upstream requests"),),
        ],
        [
            (
                name,
                period["requests"],
                percent(period["hits"], period["requests"]),
                size(period["bytes"]),
                percent(period["bytes_from_store"], period["bytes"]),
                period["upstream_requests"],
            )
            for name, period in ratio.items()
        ],
    )


def _print_upstreams(output: Output, report: Mapping[str, Any]) -> None:
    if report["upstreams"]:
        output.heading("upstreams")
        for upstream in report["upstreams"]:
            state = "up" if upstream["is_up"] else f"down: {upstream['reason']}"
            output.line(f"{upstream['registry']}  {state}", "" if upstream["is_up"] else "red")
    for limit in report["ratelimit"]:
        output.line(f"{rate_limit(limit)}, {age(limit['at'], report['now'])}")


def rate_limit(limit: Mapping[str, Any]) -> str:
    """Return a line about a registry's rate limit, which need not name the number of pulls that it allows."""
    of = "" if limit["limit"] is None else f" of {limit['limit']}"
    return f"rate limit of {limit['registry']} ({limit['credential']}): {limit['remaining']}{of} remaining"


def _print_images(output: Output, images: list[Mapping[str, Any]], now: float) -> None:
    if not images:
        return
    output.heading("most requested images")
    output.table(
        [Column("image"), number("requests"), number("sent"), Column("last request")],
        [
            (image["name"], f"{image['requests']:.0f}", size(image["bytes"]), age(image["last"], now))
            for image in images[:_IMAGES]
        ],
    )


def _print_fills(output: Output, fills: list[Mapping[str, Any]], now: float) -> None:
    if not fills:
        return
    output.heading("downloads from upstream")
    output.table(
        [Column("image"), number("received"), number("of"), number("readers"), Column("started")],
        [
            (
                *(fill["image"] or fill["digest"], size(fill["received"]), size(fill["size"])),
                *(fill["readers"], age(fill["started"], now)),
            )
            for fill in fills
        ],
    )


def _print_pulls(output: Output, pulls: Mapping[str, Any], now: float) -> None:
    recent = pulls["recent"][:_PULLS]
    if not recent and not pulls["running"]:
        return
    output.heading("pulls")
    output.table(
        [Column("image"), Column("client"), Column("started"), number("took"), number("sent"), Column("result")],
        [
            (
                *(pull["image"], pull["client"], age(pull["started"], now), duration(pull["duration"])),
                *(size(pull["sent"]), pull["result"]),
            )
            for pull in [*pulls["running"], *recent]
        ],
    )
