"""Contains the record of a request that ended, and the interface of objects that receive these records."""

from typing import NamedTuple, Protocol

from ..serve.messages import Listener, Result
from ..serve.responder import Responder


class ServedRequest(NamedTuple):
    """A request of a client that ended: its answer was sent, or the client disconnected, or it failed.

    A named tuple, because one is made for each request: a frozen dataclass takes five times as long to make.
    """

    ended: float
    """Seconds since the epoch."""
    client: str
    """IP address of the client."""
    listener: Listener
    kind: str
    """manifest, blob, referrers, ping, token or other, as in `hubcache_requests`."""
    result: Result
    status: int
    """The HTTP status; 0 where the client disconnected before there was one, or the upstream sent none."""
    registry: str
    """The registry's host, as `Registry.host`."""
    repository: str
    """The repository; empty if the path names none, or an invalid one."""
    reference: str
    """The tag or digest; empty if the path names none."""
    size: int
    """Bytes of the answer's whole body; 0 for a HEAD request, and where a forwarded answer does not announce it."""
    sent: int
    """Bytes of the body that were sent."""
    first_byte: float
    """Seconds from the request to the first byte of the answer."""
    duration: float
    """Seconds from the request to the last byte, or to the end of the connection."""
    is_complete: bool
    """Whether all of the answer was sent."""
    is_private: bool
    """Whether the answer was given for the client's own credentials: forwarded with them, or authorized by them."""
    method: str = "GET"
    source_wait: float = 0.0
    """Seconds in which the body waited for bytes from its source, as of a blob that is being downloaded."""
    client_wait: float = 0.0
    """Seconds in which the body waited for the client to take more bytes."""
    token_wait: float = 0.0
    """Seconds before the first byte in which the cache waited for a token for a request to the registry."""
    error: str = ""
    """Why the request was refused, or its body cut short by the cache; empty if the client disconnected."""
    is_repeated: bool = False
    """Whether a worker process repeated the answer to an earlier request, without asking the owner process."""


class RecordingResponder(Responder, Protocol):
    """A responder that also receives a record of each request that ended."""

    def request_ended(self, request: ServedRequest) -> None:
        """Record a request that ended."""
