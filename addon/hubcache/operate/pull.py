"""Contains the record of a pull, and the sentence that describes it."""

from dataclasses import asdict, dataclass
from typing import Any

_MAX_ERROR = 200
"""Characters of an error in a log line."""

_LONG_SECONDS = 2.0
"""Duration from which on a line says what the time was spent on."""


@dataclass(slots=True)
class Pull:
    """The requests of one client for one repository, from a manifest to the last blob.

    Clients behind one address that pull from one repository at the same time cannot be told apart: they are one pull.
    """

    client: str
    """IP address."""
    listener: str
    """`proxy` or `mirror`."""
    image: str
    """As users write it: `debian:12`, `ghcr.io/owner/name@sha256:...`; without tag or digest if only blobs were
    requested. Several tags are separated by a comma and a space."""
    registry: str
    """Host of the registry."""
    repository: str
    started: float
    """Seconds since the epoch."""
    duration: float = 0.0
    """Seconds from the first request to the last byte of the last answer so far."""
    sent: int = 0
    """Bytes of manifests and blobs that were sent to the client."""
    from_store: int = 0
    """Those of `sent` that were stored before the request."""
    from_upstream: int = 0
    """Those of `sent` that were fetched from the registry for the request, or for another one at the same time."""
    requests: int = 0
    requests_upstream: int = 0
    """Requests whose answer needed at least one request to the registry."""
    redirected: int = 0
    """Requests for blobs that were answered with a redirect: the client downloads them from another host, which is not
    counted."""
    running: int = 0
    """Requests that are being answered."""
    result: str = "hit"
    """`hit`, `stale`, `miss`, `mixed` (partly hit, partly miss), `private` or `failed`."""
    slowest: str = ""
    """What most of the time was spent on (see `pull_times`); empty if that was less than 0.05 s."""
    slowest_seconds: float = 0.0
    """Seconds spent on it."""
    error: str = ""
    """Why it failed."""
    is_private: bool = False
    """Whether a request needed the client's own credentials, so that the repository may be private."""

    def fields(self) -> dict[str, Any]:
        """Return the values of an ended pull in JSON types, without those that are empty."""
        values = asdict(self) | {name: round(getattr(self, name), 3) for name in ("started", "duration")}
        values["slowest_seconds"] = round(self.slowest_seconds, 3)
        del values["running"]
        return {name: value for name, value in values.items() if value != ""}

    def sentence(self) -> str:
        """Return a line for the log: `pull debian:12 by 10.0.0.7: 5 requests, 48.4 MB in 1.3 s, all from the store`."""
        failed = f" failed: {printable(self.error)}" if self.result == "failed" else ""
        requests = "1 request" if self.requests == 1 else f"{self.requests} requests"
        parts = [f"{requests}, {size_text(self.sent)} in {seconds_text(self.duration)}", *self._origin()]
        line = f"pull {self.image} by {self.client}{failed}{';' if failed else ':'} {', '.join(parts)}"
        if self.slowest and self.duration >= _LONG_SECONDS:
            line += f"; {seconds_text(self.slowest_seconds)} of it {self.slowest}"
        return line

    def _origin(self) -> list[str]:
        """Return where the bytes came from."""
        redirected = [f"{self.redirected} blobs redirected to another host"] if self.redirected else []
        if not self.sent:
            return redirected
        few = self.sent / 100
        if self.from_store <= few or self.from_upstream <= few:
            text = f"all from the {'registry' if self.from_store <= few else 'store'}"
            if self.from_store and self.from_upstream:
                text = f"almost {text}"
        else:
            text = f"{size_text(self.from_store)} from the store and {size_text(self.from_upstream)} from the registry"
        if self.result == "stale":
            text += ", stale because the registry did not answer"
        own = ["with the client's own credentials"] if self.result == "private" else []
        return [text, *own, *redirected]


def size_text(count: int) -> str:
    """Return a number of bytes as text, in powers of 1000 as docker does: `48.4 MB`."""
    if count < 1000:
        return "1 byte" if count == 1 else f"{count} bytes"
    value, units = count / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.95 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """Return a duration as text: `0.02 s`, `1.3 s`, `12 s`, `3 min 5 s`."""
    if seconds < 9.95:
        return f"{seconds:.2f} s" if seconds < 0.095 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def printable(text: str) -> str:
    """Return text for a log line: control characters and line ends are replaced, and it is cut to a length."""
    shown = "".join(char if char.isprintable() else "?" for char in text[: _MAX_ERROR + 1])
    return shown if len(shown) <= _MAX_ERROR else f"{shown[:_MAX_ERROR]}..."
