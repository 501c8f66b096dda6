"""The stand-in upstream's access log: what reached it, and when. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

FORMAT = (
    '{"end":$msec,"seconds":$request_time,"uri":"$uri",'
    '"status":$status,"bytes":$body_bytes_sent,"server":"$server_name"}'
)
"""What nginx writes per request, for `log_format … escape=json`."""

CDN = "cdn"
"""Name of the server that has the blobs."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One answered request; it began at `start`, in seconds since the epoch, to the millisecond."""

    start: float
    uri: str
    status: int
    bytes: int
    server: str

    @classmethod
    def parse(cls, line: str) -> Self:
        """Raises `ValueError` on a line that is not ours, `KeyError` when it lacks a field."""
        fields = json.loads(line)
        start = float(fields["end"]) - float(fields["seconds"])
        return cls(start, fields["uri"], fields["status"], fields["bytes"], fields["server"])


@dataclass(frozen=True, slots=True)
class Traffic:
    """All requests of a span of time."""

    entries: Sequence[Entry]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Self:
        """From log lines; empty ones are skipped."""
        return cls(tuple(Entry.parse(line) for line in lines if line.strip()))

    @property
    def requests(self) -> int:
        """Requests of any kind: pings, tokens, manifests, redirects and blobs."""
        return len(self.entries)

    @property
    def bytes(self) -> int:
        """Body bytes sent."""
        return sum(entry.bytes for entry in self.entries)

    def fetches(self, path: str) -> Sequence[Entry]:
        """Answers that carried bytes of one blob."""
        return [entry for entry in self.entries if entry.server == CDN and entry.uri == path and entry.bytes]
