"""The decisions of the retention policy: what is evicted and why, or why content is refused."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why content was removed."""

    SPACE = "space"
    IDLE = "idle"
    PURGED = "purged"


class Refusal(StrEnum):
    """Why there is no space for content."""

    RARE = "not requested often enough"
    UNWANTED = "everything that would have to be evicted is requested more"
    IN_USE = "everything that is left is in use or pinned"


@dataclass(frozen=True, slots=True)
class Eviction[K]:
    """One removal and its explanation. `score` is how far the rank was above the policy's clock (below 0: the clock had
    passed it), `requests` the decayed count, `idle` the seconds since the last request.
    """

    key: K
    size: int
    reason: Reason
    score: float
    requests: float
    idle: float


@dataclass(frozen=True, slots=True)
class Decision[K]:
    """The content to evict for space, the least requested first; `refusal` is the reason when that does not suffice."""

    victims: tuple[Eviction[K], ...] = ()
    refusal: Refusal | None = None
