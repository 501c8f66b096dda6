"""Groups the requests of a client for a repository into pulls."""

from collections import deque
from dataclasses import dataclass

from .served_request import ServedRequest

MAX_RECENT = 200
"""Number of pulls that are kept after they ended."""


@dataclass(slots=True)
class Pull:
    """The requests of one client for one repository, from a manifest to the last blob."""

    client: str
    """IP address."""
    listener: str
    """`proxy` or `mirror`."""
    image: str
    """As users write it: `debian:12`, `ghcr.io/owner/name@sha256:...`; several tags are separated by commas."""
    registry: str
    """Host of the registry."""
    repository: str
    started: float
    """Seconds since the epoch."""
    duration: float = 0.0
    """Seconds from the first request to the last byte of the last answer so far."""
    sent: int = 0
    """Body bytes that were sent to the client."""
    from_store: int = 0
    """Those of `sent` that were stored before the request."""
    from_upstream: int = 0
    """Those of `sent` that were fetched from the registry for the request, or for another one at the same time."""
    requests: int = 0
    requests_upstream: int = 0
    """Requests whose answer needed at least one request to the registry."""
    running: int = 0
    """Requests that are being answered."""
    result: str = "hit"
    """`hit`, `stale`, `miss`, `mixed`, `private` or `failed`."""
    slowest: str = ""
    """What most of the time was spent on; empty if it took no time worth mentioning."""
    slowest_seconds: float = 0.0
    """Seconds spent on it."""
    error: str = ""
    """Why it failed."""
    is_private: bool = False
    """Whether a request needed the client's own credentials, so that the repository may be private."""


class Pulls:
    """The pulls of all clients."""

    def __init__(self) -> None:
        self.recent: deque[Pull] = deque(maxlen=MAX_RECENT)
        """The pulls that ended last, the newest last."""

    @property
    def running(self) -> list[Pull]:
        """The pulls that have not ended, the oldest first."""
        return []

    def add(self, request: ServedRequest) -> None:
        """Add a request that ended."""
