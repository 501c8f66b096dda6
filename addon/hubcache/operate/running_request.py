"""Measures a request from when it is received to its end, and makes its record."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from ..oci.errors import RegistryError
from ..oci.reference import BlobTarget, ManifestTarget, OtherTarget, Ping, ReferrersTarget, parse_target
from ..serve.messages import Answer, Forward, Request, Result
from .served_request import ServedRequest

_MAX_PATH = 512
"""Length of a path above which its names are not cached. Names and digests of 255 characters and less fit."""

_BODILESS = (204, 304)
"""Statuses of answers without a body (RFC 9110 section 6.4.1)."""


class Names(NamedTuple):
    """What the path of a request names; empty where it names none, or an invalid one."""

    kind: str
    repository: str
    reference: str


def _parse_names(path: str) -> Names:
    try:
        target = parse_target(path)
    except RegistryError:
        return Names("other", "", "")
    match target:
        case ManifestTarget(repository, reference):
            return Names("manifest", repository, str(reference))
        case BlobTarget(repository, digest):
            return Names("blob", repository, str(digest))
        case ReferrersTarget(repository, digest):
            return Names("referrers", repository, str(digest))
        case OtherTarget(repository):
            return Names("other", repository or "", "")
        case Ping():
            return Names("ping", "", "")


_cached_names = lru_cache(1024)(_parse_names)


def names_in(path: str) -> Names:
    """Return what the path of a request names."""
    return _cached_names(path) if len(path) <= _MAX_PATH else _parse_names(path)


class RunningRequest:
    """A request that is being answered. `record` receives its record when it ends, once."""

    __slots__ = ("_first_byte", "_record", "_request", "_started")

    def __init__(self, request: Request, record: Callable[[ServedRequest], None]) -> None:
        self._request = request
        self._record: Callable[[ServedRequest], None] | None = record
        self._started = time.monotonic()
        self._first_byte: float | None = None

    def was_decided(self, forward: Forward) -> None:
        """Count the time that the decision took before mitmproxy received the request."""
        self._started -= forward.decision_seconds

    @property
    def seconds(self) -> float:
        """Seconds since the request was received."""
        return time.monotonic() - self._started

    def answer_begins(self) -> None:
        """Record that the first byte of the answer is about to be sent."""
        self._first_byte = self.seconds

    def answered(
        self,
        answer: Answer,
        *,
        sent: int,
        is_complete: bool,
        source_wait: float = 0.0,
        client_wait: float = 0.0,
        error: str = "",
    ) -> None:
        """Record the end of a request that the cache answered. `sent`: bytes of the body."""
        if answer.kind == "setup":  # a page of this program, not a registry's
            self._record = None
            return
        has_body = self._request.method != "HEAD" and answer.status not in _BODILESS
        self._ended(
            answer,
            answer.result,
            answer.status,
            size=answer.length if has_body else 0,
            sent=sent,
            is_complete=is_complete,
            is_private=answer.is_private,
            source_wait=source_wait,
            client_wait=client_wait,
            error=answer.error or error,
            is_repeated=answer.is_repeated,
        )

    def forwarded(self, forward: Forward, status: int, *, size: int, sent: int, is_complete: bool) -> None:
        """Record the end of a request that was forwarded. `status` is the upstream's, 0 if it sent none."""
        is_private = self._request.credentials is not None
        self._ended(
            forward, Result.BYPASS, status, size=size, sent=sent, is_complete=is_complete, is_private=is_private
        )

    def failed(self, why: str = "") -> None:
        """Record the end of a request for which there was no answer; does nothing if the request has ended."""
        if self._record is not None:
            self._ended(None, Result.ERROR, 0, size=0, sent=0, is_complete=False, is_private=False, error=why)

    def _ended(
        self,
        outcome: Answer | Forward | None,
        result: Result,
        status: int,
        *,
        size: int,
        sent: int,
        is_complete: bool,
        is_private: bool,
        source_wait: float = 0.0,
        client_wait: float = 0.0,
        error: str = "",
        is_repeated: bool = False,
    ) -> None:
        record, self._record = self._record, None
        if record is None:
            return
        request, duration = self._request, self.seconds
        names = names_in(request.path)
        record(
            ServedRequest(
                time.time(),
                request.client,
                request.listener,
                names.kind if outcome is None or outcome.kind == "other" else outcome.kind,
                result,
                status,
                request.registry.host,
                names.repository,
                names.reference,
                size,
                sent,
                duration if self._first_byte is None else self._first_byte,
                duration,
                is_complete,
                is_private,
                request.method,
                source_wait,
                client_wait,
                0.0 if outcome is None else outcome.token_wait,
                error,
                is_repeated,
            )
        )
