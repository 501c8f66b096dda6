"""Requests of clients and their answers, independent of mitmproxy's types."""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from ..oci.digest import Digest
from ..oci.registry import Registry
from ..transfer.sources import Source

LOCAL_TOKEN = "hubcache-anonymous"
"""The token that the cache issues to anonymous clients. It grants nothing and is never sent upstream."""

UNVERIFIED_TOKEN = "hubcache-unchecked"
"""Issued instead of a user's token while the token service cannot be reached. It grants no more than `LOCAL_TOKEN`, but
a client that presents it receives the outage as the reason of a refusal."""

MAX_SMALL_BODY = 64 << 10
"""Bytes of a body that is kept in memory: stored configs, empty layers of build tools, token requests."""

LAST_ATTEMPT = 2
"""The number of the attempt that is answered without a file of the store."""


class Listener(Enum):
    """How a client connected: to the registry's own address through the `PROXY`, or to a `MIRROR` in its settings.

    The value is the label in metrics and in the access log.
    """

    PROXY = "proxy"
    MIRROR = "mirror"


class Result(Enum):
    """How a request was answered; the value is the label in metrics."""

    HIT = "hit"
    MISS = "miss"
    REVALIDATED = "revalidated"
    STALE = "stale"
    LOCAL = "local"
    BYPASS = "bypass"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Request:
    """A request to a registry. `path` is as received, without the query; `headers` have lower-case names.

    `client` is the client's address. `body` is read only for the token service, and None until it is read.
    """

    method: str
    path: str
    registry: Registry
    listener: Listener
    headers: dict[str, str]
    query: str = ""
    client: str = ""
    to_token_service: bool = False
    """Whether it was sent to the host of the Hub's token service."""
    to_cache: bool = False
    """Whether it was sent to the cache itself, by the name that the cache has for clients of the proxy."""
    attempt: int = 0
    """Number of earlier answers whose file a worker process could not open. Only the first attempt is counted."""
    body: bytes | None = field(default=None, repr=False)

    @property
    def bypass_store(self) -> bool:
        """Whether a blob has to come from the upstream, because the stored file cannot be sent."""
        return self.attempt >= LAST_ATTEMPT

    @property
    def credentials(self) -> str | None:
        """The client's own `Authorization`; None for a token that the cache issued."""
        value = self.headers.get("authorization")
        if value is None or value.split()[-1:] in ([], [LOCAL_TOKEN], [UNVERIFIED_TOKEN]):
            return None
        return value

    @property
    def has_unverified_token(self) -> bool:
        """Whether the client has a user's credentials that the token service could not verify."""
        return self.headers.get("authorization", "").split()[-1:] == [UNVERIFIED_TOKEN]


@dataclass(slots=True)
class Answer:
    """An answer of the cache: `body` from memory, or a `source` of `length` bytes. For a HEAD, only `length` is set.

    `kind` of the target is the label in metrics; `size` is that of the whole content, also where a part is sent.
    """

    status: int
    headers: dict[str, str]
    result: Result
    body: bytes = b""
    source: Source | None = None
    length: int = 0
    size: int = 0
    kind: str = "other"
    is_private: bool = False
    """Whether the client's own credentials authorized it."""
    token_wait: float = 0.0
    """Seconds for which it waited for a token for a request to the registry."""
    error: str = ""
    """Why the request was refused, or failed."""
    is_repeated: bool = False
    """Whether a worker process repeated it without the owner."""
    content: Digest | None = None
    """The content for which the request counts, in the retention policy."""


class Change(NamedTuple):
    """What an accepted push or delete changes: a manifest by tag or digest, or a blob by digest."""

    repository: str
    reference: str
    is_blob: bool = False


@dataclass(slots=True)
class Forward:
    """The decision to forward a request to the upstream, with this `Authorization` (None: without one)."""

    authorization: str | None
    change: Change | None = None
    """What the request changes if the upstream accepts it."""
    kind: str = "other"
    token_wait: float = 0.0
    """Seconds for which the decision waited for a token."""
    decision_seconds: float = 0.0
    """Seconds that the decision took, if it was made before mitmproxy received the request."""
