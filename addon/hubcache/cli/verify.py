"""Reads all stored content and compares it with its digests: the command `verify`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .errors import FAILURES
from .options import Directory, Json, connect
from .output import Output
from .text import counted, size

_SOUND = ("good", "repaired")
"""States of content that may be served afterwards."""

_OF_REPAIR = ("repaired", "not repairable")
"""States of content that was reported before, when its damage was found."""


def verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch damaged and missing content from its registry again.")
    ] = False,
    directory: Directory = None,
    is_json: Json = False,
) -> None:
    """Verify all stored content; the exit code is 1 if damage remains.

    Damaged content is moved to the quarantine, so that no client receives it.
    """
    output = Output(is_json)
    counts: Counter[str] = Counter()
    done = 0
    with progress_bar(output) as progress:
        for event in connect(directory).stream("/v1/verify", {"repair": repair}):
            output.event(event)
            if event.get("begin"):
                progress.update(progress.task_ids[0], total=event["bytes"])
            state = event.get("state") or event.get("found")
            if state is None:
                continue
            if "state" in event:
                counts[state] += 1
            if state not in _OF_REPAIR:
                done += event["size"]
            progress.update(progress.task_ids[0], completed=done, damaged=_damage(counts))
            if state != "good":
                reason = f": {event['error']}" if event.get("error") else ""
                output.line(f"{event['digest']}  {size(event['size'])}  {state}{reason}")
    remaining = sum(count for state, count in counts.items() if state not in _SOUND)
    parts = [f"{count} {state}" for state, count in sorted(counts.items())]
    total = counted(sum(counts.values()), "object")
    output.line(f"{total}, {size(done)}: {', '.join(parts) or 'the store is empty'}")
    if remaining:
        raise typer.Exit(FAILURES)


@contextmanager
def progress_bar(output: Output) -> Iterator[Progress]:
    """Show a bar on standard error while it is a terminal."""
    progress = Progress(
        *(TextColumn("verifying"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()),
        TextColumn("{task.fields[damaged]}", markup=False),
        console=output.console(is_error=True),
        transient=True,
        disable=not output.stderr.isatty(),
    )
    progress.add_task("", total=None, damaged="")
    with progress:
        yield progress


def _damage(counts: "Counter[str]") -> str:
    found = sum(count for state, count in counts.items() if state != "good")
    return f"{found} damaged" if found else ""
