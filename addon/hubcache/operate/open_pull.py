"""Adds up the requests of a client for a repository, until they are a complete pull."""

from typing import NamedTuple

from ..oci.image_name import ImageName
from ..oci.reference import parse_reference, subject_of_tag
from ..serve.messages import Request, Result
from .pull import Pull
from .pull_times import PullTimes
from .running_request import names_in
from .served_request import ServedRequest

_MAX_NAMES = 3
"""Number of tags that the name of a pull shows."""

_MAX_REFERENCES = 1000
"""Number of tags, of received and of failed references that are remembered for one pull."""

_MIN_SECONDS = 0.05
"""Seconds below which it is not worth mentioning what they were spent on."""

_SHORT_DIGEST = 19
"""Characters of a digest in a log line, `sha256:` included, as docker shows it."""

_UPSTREAM = (Result.MISS, Result.BYPASS, Result.REVALIDATED)
_KINDS = ("manifest", "blob")


class PullKey(NamedTuple):
    """What the requests of one pull have in common."""

    client: str
    listener: str
    registry: str
    repository: str


class PullRequest(NamedTuple):
    """A request for a manifest or a blob by GET or HEAD, which may be part of a pull."""

    key: PullKey
    method: str
    kind: str
    reference: str

    @property
    def is_by_tag(self) -> bool:
        """Whether it is for a manifest by a tag."""
        return self.kind == "manifest" and ":" not in self.reference

    @classmethod
    def of_begun(cls, request: Request) -> "PullRequest | None":
        """Return what a request that begins is for; None if it is not part of a pull."""
        names = names_in(request.path)
        key = PullKey(request.client, request.listener.value, request.registry.host, names.repository)
        return cls._checked(key, request.method, names.kind, names.reference)

    @classmethod
    def of_ended(cls, request: ServedRequest) -> "PullRequest | None":
        """Return what a request that ended was for; None if it is not part of a pull."""
        key = PullKey(request.client, request.listener.value, request.registry, request.repository)
        return cls._checked(key, request.method, request.kind, request.reference)

    @classmethod
    def _checked(cls, key: PullKey, method: str, kind: str, reference: str) -> "PullRequest | None":
        """Signatures and the like, which have tags made from digests, are not part of a pull."""
        is_content = kind in _KINDS and key.repository and method in ("GET", "HEAD")
        is_by_fallback_tag = kind == "manifest" and ":" not in reference and subject_of_tag(reference) is not None
        return cls(key, method, kind, reference) if is_content and not is_by_fallback_tag else None


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
        self._pull = Pull(key.client, key.listener, "", key.registry, key.repository, started=0.0)
        self._ended = 0.0
        self._tags: dict[str, None] = {}
        self._digest: str | None = None
        self._hits = self._misses = 0
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

    def begin(self, request: PullRequest) -> None:
        """Note what is requested."""
        if request.method == "GET":
            self._has_gets = True
            self.has_blobs |= request.kind == "blob"
        if request.is_by_tag and len(self._tags) < _MAX_REFERENCES:
            self._tags[request.reference] = None
        elif request.kind == "manifest" and self._digest is None:
            self._digest = request.reference

    def add(self, request: ServedRequest) -> None:
        """Add a request that ended, of any kind."""
        pull = self._pull
        self._add_time(request)
        pull.requests += 1
        pull.requests_upstream += request.result in _UPSTREAM
        pull.is_private |= request.is_private
        if PullRequest.of_ended(request) is None:
            return
        is_received = 200 <= request.status < 400 and request.is_complete
        self._has_heads |= is_received and request.method == "HEAD" and request.kind == "manifest"
        if request.method == "GET" and 200 <= request.status < 400:
            self._add_content(request)
        if is_received:
            self._failures.pop(("HEAD", request.reference), None)
            if request.method == "GET" and len(self._received) < _MAX_REFERENCES:
                self._received.add(request.reference)
                self._failures.pop(("GET", request.reference), None)
        elif request.method == "GET" or request.kind == "manifest":  # pushes request blobs by HEAD
            self._add_failure(request)

    def _add_failure(self, request: ServedRequest) -> None:
        if request.reference not in self._received and len(self._failures) < _MAX_REFERENCES:
            self._failures[request.method, request.reference] = _reason(request)

    def _add_content(self, request: ServedRequest) -> None:
        self._pull.sent += request.sent
        self._has_stale |= request.result is Result.STALE
        if request.result in (Result.MISS, Result.BYPASS):
            self._misses += 1
            self._pull.from_upstream += request.sent
        else:
            self._hits += 1
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
        return "mixed" if self._hits else "miss"

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
