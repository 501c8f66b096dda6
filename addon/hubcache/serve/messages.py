"""What comes in and what goes out, free of mitmproxy's types."""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from ..oci.registry import Registry
from ..transfer.sources import Source

LOCAL_TOKEN = "hubcache-anonymous"
"""The token that anonymous clients get from the proxy itself. It gives no right to anything and is never sent on."""

UNVERIFIED_TOKEN = "hubcache-unchecked"
"""In place of a user's, while the token service cannot be reached: worth no more than `LOCAL_TOKEN`, but whoever
presents it is told of the outage, not that it may not."""

MAX_SMALL_BODY = 64 << 10
"""Bytes of a body up to which it is kept in memory: stored configs, empty layers of build tools, token requests."""

LAST_ATTEMPT = 2
"""The attempt that needs no file of the store."""


class Listener(Enum):
    """How the client reached us: it believes to speak with the registry (`PROXY`), or it knows a `MIRROR`."""

    PROXY = "proxy"
    MIRROR = "mirror"


class Result(Enum):
    """How a request was answered; the label in metrics."""

    HIT = "hit"
    MISS = "miss"
    REVALIDATED = "revalidated"
    STALE = "stale"
    LOCAL = "local"
    BYPASS = "bypass"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a registry. `path` is as on the wire, without the query; `headers` have lower-case names.

    `client` tells apart who asks (an address). A `body` is read only for the token service; None before that.
    """

    method: str
    path: str
    registry: Registry
    listener: Listener
    headers: dict[str, str]
    query: str = ""
    client: str = ""
    to_token_service: bool = False
    """Whether it came to the token service's own host."""
    attempt: int = 0
    """How often it was asked before: a worker could not open the file that it was told. Only the first is counted."""
    body: bytes | None = field(default=None, repr=False)

    @property
    def bypass_store(self) -> bool:
        """Whether a blob is to come from the upstream itself, because what the store has cannot be sent."""
        return self.attempt >= LAST_ATTEMPT

    @property
    def credentials(self) -> str | None:
        """The client's own `Authorization`, if it has one that means anything upstream."""
        value = self.headers.get("authorization")
        if value is None or value.split()[-1:] in ([], [LOCAL_TOKEN], [UNVERIFIED_TOKEN]):
            return None
        return value

    @property
    def has_unverified_token(self) -> bool:
        """Whether the client has credentials that no token service could be asked about."""
        return self.headers.get("authorization", "").split()[-1:] == [UNVERIFIED_TOKEN]


@dataclass(slots=True)
class Answer:
    """An answer made here: `body` from memory, or a `source` of `length` bytes. A HEAD has neither, but a `length`.

    `kind` is what was asked for, the label in metrics; `size` the bytes of the whole content, whatever part is sent.
    """

    status: int
    headers: dict[str, str]
    result: Result
    body: bytes = b""
    source: Source | None = None
    length: int = 0
    size: int = 0
    kind: str = "other"


class Change(NamedTuple):
    """What an accepted push or delete changes: a manifest by tag or digest, or a blob by digest."""

    repository: str
    reference: str
    is_blob: bool = False


@dataclass(slots=True)
class Forward:
    """Let the request through to the upstream, with this `Authorization` (None: without one)."""

    authorization: str | None
    change: Change | None = None
    """What the request changes if it is accepted."""
    kind: str = "other"
