"""Shows what the cache does at the moment, again and again: the command `top`."""

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from .client import ControlClient
from .errors import UnreachableError
from .options import Directory, Json, connect
from .output import Column, Output, drawn_table, number
from .status import print_report, rate_limit
from .text import age, clean, duration, percent, size

_PULLS = 15


def top(
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Seconds between two readings.")] = 1.0,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of readings; without it, until Ctrl-C.")
    ] = None,
    directory: Directory = None,
    is_json: Json = False,
) -> None:
    """Show running downloads and pulls, and keep the view up to date; end it with Ctrl-C.

    In a pipe, it prints a report each time, and with --json one line of JSON.
    """
    output = Output(is_json)
    client = connect(directory)
    try:
        if output.is_terminal:
            _show_live(client, output, interval, count)
        else:
            _print_each(client, output, interval, count)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _print_each(client: ControlClient, output: Output, interval: float, count: int | None) -> None:
    readings = 0
    while True:
        report = client.get("/v1/status")
        if output.is_json:
            output.event(report)
        else:
            print_report(output, report)
            output.line()
            output.stdout.flush()
        readings += 1
        if readings == count:
            return
        time.sleep(interval)


def _show_live(client: ControlClient, output: Output, interval: float, count: int | None) -> None:
    """Draw the view; while the cache restarts, it says so."""
    before: Mapping[str, Any] | None = None
    report = client.get("/v1/status")  # an error at the start ends the command
    readings, trouble = 0, ""
    with Live(console=output.console(), auto_refresh=False, screen=count is None) as live:
        while True:
            view = _view(report, before)
            live.update(Group(Text(clean(trouble), "bold red"), view) if trouble else view, refresh=True)
            readings += 1
            if readings == count:
                return
            time.sleep(interval)
            before, trouble = report, ""
            try:
                report = client.get("/v1/status")
            except UnreachableError as error:
                trouble = str(error)


def _view(report: Mapping[str, Any], before: Mapping[str, Any] | None) -> RenderableType:
    now = report["now"]
    parts: list[RenderableType] = [Text(line, "bold") for line in _summary(report, before)]
    parts += [Text(clean(f"problem: {problem}"), "bold red") for problem in report["problems"]]
    for limit in report["ratelimit"]:
        parts.append(Text(clean(rate_limit(limit))))
    if report["fills"]:
        parts += [Text("\ndownloads from upstream", "bold"), _fills(report["fills"], now)]
    pulls = [*report["pulls"]["running"], *report["pulls"]["recent"]][:_PULLS]
    if pulls:
        parts += [Text("\npulls", "bold"), _pulls(pulls, now)]
    return Group(*parts)


def _summary(report: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """Return lines about the store, the hit ratio, and the rate since the reading before."""
    store, hour = report["store"], report["ratio"]["hour"]
    rate = ""
    if before is not None and (passed := report["now"] - before["now"]) > 0:
        sent = hour["bytes"] - before["ratio"]["hour"]["bytes"]
        rate = f", now {size(max(0, sent) / passed)}/s"
    used = f"store {size(store['bytes'])} of {size(store['capacity'])}"
    return [
        clean(f"hubcache {report['version']}, up {duration(report['uptime'])}, {used}"),
        f"last hour {hour['requests']} requests, {percent(hour['hits'], hour['requests'])} hits{rate}",
    ]


def _fills(fills: list[Mapping[str, Any]], now: float) -> RenderableType:
    return drawn_table(
        [Column("image"), number("received"), number("of"), number(""), number("readers"), Column("started")],
        [
            (
                *(fill["image"] or fill["digest"], size(fill["received"]), size(fill["size"])),
                *(percent(fill["received"], fill["size"]), fill["readers"], age(fill["started"], now)),
            )
            for fill in fills
        ],
    )


def _pulls(pulls: list[Mapping[str, Any]], now: float) -> RenderableType:
    columns = [Column("image"), Column("client"), Column("started"), number("took"), number("sent")]
    return drawn_table(
        [*columns, number("from the store"), Column("result")],
        [
            (
                *(pull["image"], pull["client"], age(pull["started"], now), duration(pull["duration"])),
                *(size(pull["sent"]), percent(pull["from_store"], pull["sent"]), pull["result"]),
            )
            for pull in pulls
        ],
    )
