"""Parses the access log of the upstream registry. Pure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

FORMAT = (
    '{"end":$msec,"seconds":$request_time,"uri":"$uri",'
    '"status":$status,"bytes":$body_bytes_sent,"server":"$server_name"}'
)
"""The line that nginx writes for each request, for the directive `log_format … escape=json`."""

CDN = "cdn"
"""Name of the nginx server that serves blobs."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One answered request. `start` is in seconds since the epoch, with a resolution of one millisecond."""

    start: float
    uri: str
    status: int
    bytes: int
    server: str

    @classmethod
    def parse(cls, line: str) -> Self:
        """Parse one log line. Raises `ValueError` if it is not JSON, and `KeyError` if a field is missing."""
        fields = json.loads(line)
        start = float(fields["end"]) - float(fields["seconds"])
        return cls(start, fields["uri"], fields["status"], fields["bytes"], fields["server"])


@dataclass(frozen=True, slots=True)
class Traffic:
    """The requests of a period of time."""

    entries: Sequence[Entry]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Self:
        """Parse log lines, skipping empty ones."""
        return cls(tuple(Entry.parse(line) for line in lines if line.strip()))

    @property
    def requests(self) -> int:
        """Number of requests of every kind: `/v2/`, token, manifest, redirect and blob."""
        return len(self.entries)

    @property
    def bytes(self) -> int:
        """Bytes of all response bodies."""
        return sum(entry.bytes for entry in self.entries)

    def fetches(self, path: str) -> Sequence[Entry]:
        """The responses of the CDN that carried bytes of the blob at `path`."""
        return [entry for entry in self.entries if entry.server == CDN and entry.uri == path and entry.bytes]
