"""Faults of the stand-in Hub: what goes wrong, for which requests, how often."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


@dataclass
class Fault:
    """One fault. The first group limits it, the second replaces the answer, the third spoils the real answer.

    *kind* is a glob over ping, token, manifest, blob, cdn, upload, tags, referrers and other; *path* one over path and
    query.
    Combine what makes sense; ``Fault(kind="cdn", rate=50_000, close_after=70_000)`` is slow, then breaks off.
    """

    kind: str = "*"
    method: str = "*"
    path: str = "*"
    times: int | None = None
    """How many requests it hits; None: until removed."""
    after: int = 0
    """How many matching requests pass unharmed first."""

    status: int | None = None
    """Answer this status with *body*; 401 at the registry carries the usual challenge."""
    body: bytes | str | Mapping[str, object] = b""
    content_type: str | None = None
    """Default: JSON for a mapping, HTML for text that begins with ``<``, plain text otherwise."""
    redirect: str | None = None
    """Answer 307 to this URL, or ``loop``: to the same URL again and again."""
    blackhole: bool = False
    """Never answer; the connection stays open until the client leaves or the fault is removed."""
    reset: bool = False
    """Close the connection instead of answering."""

    delay: float = 0.0
    """Seconds before the headers go out."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers added to the answer or replaced in it."""
    drop: tuple[str, ...] = ()
    """Headers left out of the answer."""
    chunked: bool = False
    """No Content-Length: Transfer-Encoding chunked."""
    length: int | None = None
    """A wrong Content-Length; the connection closes after the real body."""
    close_after: int | None = None
    """Close after so many body bytes."""
    extra: int = 0
    """So many bytes follow the real body; inside the body when *chunked*, else past the announced length."""
    corrupt_at: int | None = None
    """Flip the bits of the body byte at this offset of the answer."""
    rate: int | None = None
    """Bytes per second of this connection."""
    pause_after: int | None = None
    """Hold the body after so many bytes until *release* is set; removing the fault sets it."""
    release: threading.Event = field(default_factory=threading.Event)
    hits: int = 0
    """How many requests it has hit."""

    def matches(self, kind: str, method: str, path: str) -> bool:
        return fnmatchcase(kind, self.kind) and fnmatchcase(method, self.method) and fnmatchcase(path, self.path)

    def answer(self) -> tuple[bytes | Mapping[str, object], str]:
        """The replacing body and its content type."""
        if isinstance(self.body, Mapping):
            return self.body, self.content_type or "application/json"
        data = self.body.encode() if isinstance(self.body, str) else self.body
        guessed = "text/html; charset=utf-8" if data.lstrip().startswith(b"<") else "text/plain; charset=utf-8"
        return data, self.content_type or guessed


class Faults:
    """The faults in force; the first one that matches a request hits it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """End one fault; whoever it holds is let go."""
        with self._lock:
            self._faults = [other for other in self._faults if other is not fault]
        fault.release.set()

    def clear(self) -> None:
        """End all faults."""
        for fault in list(self._faults):
            self.remove(fault)

    def take(self, kind: str, method: str, path: str) -> Fault | None:
        """The fault that hits this request, counted."""
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
