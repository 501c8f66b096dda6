"""Faults of the stand-in Hub: which requests they affect, how often, and how."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

SILENT_SECONDS = 2.0
"""A fault with a longer delay exists for the client's time-out."""


@dataclass
class Fault:
    """One fault. The first group of fields selects requests, the second replaces the response, the third modifies it.

    `kind` is a glob for ping, token, manifest, blob, cdn, upload, tags, referrers and other; `path` a glob for path and
    query. Fields can be combined: `Fault(kind="cdn", rate=50_000, close_after=70_000)` is slow, then breaks off.
    """

    kind: str = "*"
    method: str = "*"
    path: str = "*"
    times: int | None = None
    """Number of requests that it affects; None: until it is removed."""
    after: int = 0
    """Number of matching requests that it does not affect first."""

    status: int | None = None
    """Respond with this status and `body`; the registry's 401 has the usual challenge."""
    body: bytes | str | Mapping[str, object] = b""
    content_type: str | None = None
    """Default: JSON for a mapping, HTML for text that begins with `<`, else plain text."""
    redirect: str | None = None
    """Respond with 307 to this URL; `loop` is the URL of the request itself."""
    blackhole: bool = False
    """Never respond; the connection stays open until the client closes it or the fault is removed."""
    reset: bool = False
    """Close the connection instead of responding."""

    delay: float = 0.0
    """Seconds before the headers are sent."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers that are added to the response, or replaced in it."""
    drop: tuple[str, ...] = ()
    """Headers that are removed from the response."""
    chunked: bool = False
    """Send no Content-Length, but Transfer-Encoding chunked."""
    length: int | None = None
    """Send this wrong Content-Length, and close the connection after the real body."""
    close_after: int | None = None
    """Close the connection after this many bytes of the body."""
    extra: int = 0
    """Number of bytes that follow the real body; part of the body when `chunked`, else after the declared length."""
    corrupt_at: int | None = None
    """Flip the bits of the byte at this offset of the body."""
    rate: int | None = None
    """Bytes per second on this connection."""
    pause_after: int | None = None
    """Pause the body after this many bytes until `release` is set; removing the fault sets it."""
    release: threading.Event = field(default_factory=threading.Event)
    hits: int = 0
    """Number of requests that it has affected."""

    def matches(self, kind: str, method: str, path: str) -> bool:
        return fnmatchcase(kind, self.kind) and fnmatchcase(method, self.method) and fnmatchcase(path, self.path)

    def answer(self) -> tuple[bytes | Mapping[str, object], str]:
        """Return the replacement body and its content type."""
        if isinstance(self.body, Mapping):
            return self.body, self.content_type or "application/json"
        data = self.body.encode() if isinstance(self.body, str) else self.body
        guessed = "text/html; charset=utf-8" if data.lstrip().startswith(b"<") else "text/plain; charset=utf-8"
        return data, self.content_type or guessed


class Faults:
    """The active faults; the first one that matches a request affects it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        # A copy of a fault, as a parametrised test makes it, has the event of the original, which may be set.
        fault.release = threading.Event()
        with self._lock:
            self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """Remove one fault, and resume the responses that it paused."""
        with self._lock:
            self._faults = [other for other in self._faults if other is not fault]
        fault.release.set()

    def clear(self) -> None:
        """Remove all faults."""
        for fault in list(self._faults):
            self.remove(fault)

    @property
    def are_silent(self) -> bool:
        """Whether requests that match a fault get no response within `SILENT_SECONDS`."""
        with self._lock:
            return any(fault.blackhole or fault.delay > SILENT_SECONDS for fault in self._faults)

    def take(self, kind: str, method: str, path: str) -> Fault | None:
        """Return the fault that affects this request, and count it."""
        with self._lock:
            for fault in self._faults:
                if not fault.matches(kind, method, path) or fault.times == 0:
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                fault.hits += 1
                return fault
        return None
