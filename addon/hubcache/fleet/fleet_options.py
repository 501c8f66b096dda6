"""The option values of a fleet."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """Option values that hold from the start of a node to its end.

    `bucket` is a URL such as `s3://NAME/PREFIX`, `capacity` in bytes. `listen` is where peers are served; `address` is
    where they connect to, None for the address of the interface that reaches the bucket.
    """

    bucket: str
    capacity: int
    stores_private: bool
    listen: tuple[str, int]
    address: tuple[str, int | None] | None
    version: str


@dataclass(frozen=True, slots=True)
class FleetTimes:
    """Option values in seconds, which may change while a node runs; the names are those of the options."""

    half_life: float
    expire_after: float
    tag_ttl: float
    negative_ttl: float
    max_stale: float
