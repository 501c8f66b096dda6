"""Adds up the requests of a client for a repository, until they are a complete pull."""

from enum import Enum
from functools import lru_cache

from ..oci.image_name import ImageName
from ..oci.reference import parse_reference, subject_of_tag
from ..serve.messages import Result
from .pull import Pull
from .pull_times import PullTimes
from .served_request import ServedRequest

_MAX_NAMES = 3
"""Number of tags that the name of a pull shows."""

_MAX_REFERENCES = 1000
"""Number of tags, of received and of failed references that are remembered for one pull."""

_MIN_SECONDS = 0.05
"""Seconds below which it is not reported what they were spent on."""

_SHORT_DIGEST = 19
"""Characters of a digest in a log line, `sha256:` included, as docker shows it."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_UPSTREAM = frozenset({Result.MISS, Result.BYPASS, Result.REVALIDATED})

type PullKey = tuple[str, str, str, str]
"""What the requests of one pull have in common: client, listener, registry and repository."""


class Part(Enum):
    """What a request is for, as a part of a pull."""

    TAG = "a manifest by a tag"
    DIGEST = "a manifest by its digest"
    BLOB = "a blob"
    NONE = "something else"


@lru_cache(2048)
def part(method: str, kind: str, reference: str) -> Part:
    """Return what a request is for. Signatures and the like, which have tags made from digests, are no part."""
    if method not in ("GET", "HEAD") or not reference:
        return Part.NONE
    if kind == "blob":
        return Part.BLOB
    if kind != "manifest" or (":" not in reference and subject_of_tag(reference) is not None):
        return Part.NONE
    return Part.DIGEST if ":" in reference else Part.TAG


class OpenPull:
    """The requests so far. `now` is in seconds of a monotonic clock.

    They are a pull with the first GET, or if HEAD requests for manifests failed and nothing was received. Otherwise
    they only check whether a tag has moved, or belong to a push.
    """

    def __init__(self, key: PullKey, now: float) -> None:
        self.opened = self.last_event = now
        self.has_blobs = False
        """Whether a blob was requested by GET."""
        self.running = 0
        """Requests that are being answered."""
        self._has_gets = self._has_heads = False
        client, listener, registry, repository = key
        self._pull = Pull(client, listener, "", registry, repository, started=0.0)
        self._ended = 0.0
        self._tags: dict[str, None] = {}
        self._digest: str | None = None
        self._blob_hits = self._misses = 0
        self._has_stale = False
        self._received: set[str] = set()
        self._failures: dict[tuple[str, str], str] = {}
        """Reasons by method and reference of requests that failed, and have not succeeded since."""
        self._times = PullTimes()

    @property
    def is_pull(self) -> bool:
        """Whether the requests are a pull."""
        return self._has_gets or bool(self._failures and not self._has_heads)

    @property
    def is_check(self) -> bool:
        """Whether the client only found out whether a tag has moved."""
        return self._has_heads and not self._has_gets

    @property
    def has_failures(self) -> bool:
        """Whether something was not received, so that the client may request it again later."""
        return bool(self._failures)

    def may_be_followed(self, tag: str, now: float, most: float) -> bool:
        """Whether a request for a tag begins another pull: after blobs, or after another tag that was refused.

        While a request is being answered, only if this pull is older than `most` seconds.
        """
        is_refused = bool(self._failures) and not self._received and tag not in self._tags
        return (self.has_blobs or is_refused) and (not self.running or now - self.opened >= most)

    def begin(self, method: str, part: Part, reference: str) -> None:
        """Note what is requested."""
        if method == "GET":
            self._has_gets = True
            if part is Part.BLOB:
                self.has_blobs = True
        if part is Part.TAG:
            if len(self._tags) < _MAX_REFERENCES:
                self._tags[reference] = None
        elif part is Part.DIGEST and self._digest is None:
            self._digest = reference

    def add(self, request: ServedRequest, part: Part) -> None:
        """Add a request that ended, of any kind."""
        pull = self._pull
        self._add_time(request)
        pull.requests += 1
        if request.result in _UPSTREAM:
            pull.requests_upstream += 1
        if request.is_private:
            pull.is_private = True
        if part is not Part.NONE:
            is_accepted = 200 <= request.status < 400
            (self._add_get if request.method == "GET" else self._add_head)(request, part, is_accepted)

    def _add_get(self, request: ServedRequest, part: Part, is_accepted: bool) -> None:
        reference = request.reference
        if is_accepted:
            self._add_content(request, part)
        if not is_accepted or not request.is_complete:
            self._add_failure(request)
        elif len(self._received) < _MAX_REFERENCES:
            self._received.add(reference)
            if self._failures:
                self._failures.pop(("GET", reference), None)
                self._failures.pop(("HEAD", reference), None)

    def _add_head(self, request: ServedRequest, part: Part, is_accepted: bool) -> None:
        if part is Part.BLOB:  # as before a push
            return
        if is_accepted:
            self._has_heads = True
            self._failures.pop(("HEAD", request.reference), None)
        else:
            self._add_failure(request)

    def _add_failure(self, request: ServedRequest) -> None:
        if request.reference not in self._received and len(self._failures) < _MAX_REFERENCES:
            self._failures[request.method, request.reference] = _reason(request)

    def _add_content(self, request: ServedRequest, part: Part) -> None:
        if request.status in _REDIRECTS:
            self._pull.redirected += 1
            return
        self._pull.sent += request.sent
        if request.result is Result.STALE:
            self._has_stale = True
        if request.result in (Result.MISS, Result.BYPASS):
            self._misses += 1
            self._pull.from_upstream += request.sent
        else:
            self._blob_hits += part is Part.BLOB
            self._pull.from_store += request.sent

    def add_token(self, request: ServedRequest) -> None:
        """Add the time of a request for a token, which names no repository."""
        self._add_time(request)

    def _add_time(self, request: ServedRequest) -> None:
        started = request.ended - request.duration
        self._pull.started = min(self._pull.started or started, started)
        self._ended = max(self._ended, request.ended)
        self._times.add(request)

    def summary(self) -> Pull:
        """Return the pull so far; `requests` is 0 until the first has ended."""
        pull = self._pull
        pull.image, pull.running = self._image(), self.running
        pull.duration = max(0.0, self._ended - pull.started)
        slowest, seconds = self._times.slowest()
        pull.slowest, pull.slowest_seconds = (slowest, seconds) if seconds >= _MIN_SECONDS else ("", 0.0)
        failures = [why for (method, _), why in self._failures.items() if method == "GET" or not self._received]
        pull.error = failures[0] if failures else ""
        pull.result = "failed" if failures else self._result()
        return pull

    def _result(self) -> str:
        if self._pull.is_private:
            return "private"
        if self._has_stale:
            return "stale"
        if not self._misses:
            return "hit"
        return (
            "mixed" if self._blob_hits else "miss"
        )  # a manifest that was fetched may be requested again by its digest

    def _image(self) -> str:
        tags = list(self._tags)
        if not tags:
            return self._name(self._digest)
        names = [self._name(tag) for tag in tags[:_MAX_NAMES]]
        return ", ".join(names) + (f" and {len(tags) - _MAX_NAMES} more" if len(tags) > _MAX_NAMES else "")

    def _name(self, reference: str | None) -> str:
        host, repository = self._pull.registry, self._pull.repository
        if reference is None:
            return str(ImageName(host, repository, "latest")).removesuffix(":latest")
        return str(ImageName(host, repository, parse_reference(reference)))


def _reason(request: ServedRequest) -> str:
    """Return why a request failed: `manifest 12: 404 manifest unknown`."""
    what = f"{request.kind} {request.reference[:_SHORT_DIGEST] if ':' in request.reference else request.reference}"
    if request.status >= 400:
        return f"{what}: {request.status} {request.error}".rstrip()
    return f"{what}: {request.error or 'the client disconnected'}"
