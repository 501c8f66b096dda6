"""Shows the progress of `warm`: a bar for each running layer on a terminal, else a line for each image that ended."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.text import Text

from .output import Output
from .text import clean, short_digest, size

_MAX_BARS = 12
_STYLES = {"failed": "red", "skipped": "yellow"}


class WarmDisplay:
    """The progress while the context is open, and the lines about images that ended."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._is_drawn = output.stderr.isatty() and not output.is_json
        self._bars: dict[tuple[str, str], TaskID] = {}
        self._shown: dict[str, str] = {}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            *(BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()),
            console=output.console(is_error=True),
            transient=True,
            disable=not self._is_drawn,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Show an event of the cache."""
        if event.get("kind") == "blob":
            self._show_layer(event)
        elif event.get("kind") == "image" and self._shown.get(event["image"]) != event["state"]:
            self._shown[event["image"]] = event["state"]
            self._show_image(event)

    def _show_layer(self, event: Mapping[str, Any]) -> None:
        key = (event["image"], event["digest"])
        if event["state"] == "running" and self._is_drawn:
            if key not in self._bars and len(self._bars) < _MAX_BARS:
                description = clean(f"{event['image']} {short_digest(event['digest'])}")
                self._bars[key] = self._progress.add_task(description, total=event["size"])
            if key in self._bars:
                self._progress.update(self._bars[key], completed=event["received"])
        elif (bar := self._bars.pop(key, None)) is not None:
            self._progress.remove_task(bar)
        if event["state"] == "failed":
            self._line(f"{event['image']}: {event['digest']} failed: {event['error']}", "red")

    def _show_image(self, event: Mapping[str, Any]) -> None:
        state, name = event["state"], event["image"]
        if state in ("failed", "skipped"):
            self._line(f"{name}: {state}: {event['error']}", _STYLES[state])
        elif state == "stored":
            received = f"{size(event['received'])} received" if event["received"] else "was stored already"
            self._line(f"{name}: stored, {size(event['size'])}, {received}")
        elif state == "running" and not self._is_drawn:
            self._line(f"{name}: fetching")

    def _line(self, text: str, style: str = "") -> None:
        """Print a line, on a terminal above the bars."""
        if self._is_drawn and self._output.stdout.isatty():
            self._progress.console.print(Text(clean(text), style=style))
        else:
            self._output.line(text, style)

    def show_summary(self, event: Mapping[str, Any]) -> None:
        """Show what the whole command did and cost."""
        counts = [f"{event[state]} {state}" for state in ("stored", "failed", "skipped") if event[state]]
        requests = event["upstream_requests"]
        self._output.line(
            f"{', '.join(counts)}; {size(event['received'])} received, "
            f"{requests} request{'' if requests == 1 else 's'} to registries"
        )
        for limit in event["ratelimit"]:
            before, after = limit["before"], limit["after"]
            if after is not None:
                cost = f", {before - after} fewer than before" if before is not None and before > after else ""
                self._output.line(f"rate limit of {limit['registry']}: {after} requests remaining{cost}")
