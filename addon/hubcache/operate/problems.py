"""Says what is wrong with a cache, in sentences that also say what to do."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..decide.eviction import Reason
from ..store.capacity import Removal
from ..transfer.breaker import Circuit
from .metrics import RateLimit

_ADVICE = {
    "directory": "Check that the directory exists, that the cache's user may write to it, and that no other program "
    "uses it. The cache tries again every 30 seconds.",
    "index": "Check the disk for errors, and that it is not full.",
    "files": "Check that the disk is not full and that the cache's user may write to it; if other programs need the "
    "space, lower hubcache_size.",
}
"""What to do by the part of the store that failed."""

_LIMIT_SECONDS = 6 * 3600.0
"""A rate limit of Docker Hub is for this time; a report that is older says nothing about the present."""

_FEW = 10
"""A rate limit is a problem when less than one in this many pulls remains."""

_SOON_SECONDS = 86400.0
"""Content that was requested this shortly before it was removed will probably be requested again."""


def store_problem(part: str, problem: str, *, public: bool) -> str:
    """Return the sentence for a store that cannot store content; `problem` is the reason."""
    if public:
        return (
            "Nothing can be stored, so that every pull comes from the registry. The status page at the cache's own "
            "status address names the reason."
        )
    return (
        f"Nothing can be stored, so that every pull comes from the registry: {problem}. {_ADVICE.get(part, '')}".strip()
    )


def upstream_problems(circuits: Mapping[str, Circuit]) -> Iterator[str]:
    """Return a sentence for each host that does not answer."""
    for host, circuit in sorted(circuits.items()):
        if circuit.is_open:
            yield (
                f"{host} does not answer: {circuit.reason}. Stored images are served, pulls of others fail. The cache "
                "tries again by itself; if this lasts, check this machine's network, DNS and outbound proxy."
            )


def rate_limit_problems(limits: Mapping[tuple[str, str], RateLimit], now: float) -> Iterator[str]:
    """Return a sentence for each rate limit of which little remains."""
    for (host, credential), limit in limits.items():
        if now - limit.at > _LIMIT_SECONDS or (limit.remaining and limit.remaining * _FEW >= (limit.limit or _FEW)):
            continue
        of = "" if limit.limit is None else f" of {limit.limit}"
        advice = "Stored images can be pulled without limit"
        if credential == "anonymous":
            advice += "; an account (hubcache_username, hubcache_password_file) has a higher limit"
        yield f"{limit.remaining}{of} pulls remain at {host} ({credential}). {advice}."


def space_problems(removals: Iterable[Removal], now: float) -> Iterator[str]:
    """Return a sentence if content was removed for space although clients had requested it shortly before."""
    lost = [
        removal.eviction.size
        for removal in removals
        if removal.eviction.reason is Reason.SPACE
        and removal.eviction.idle < _SOON_SECONDS
        and removal.eviction.requests > 1
        and 0 <= now - removal.at < _SOON_SECONDS
    ]
    if lost:
        size = f"{sum(lost) / 2**30:.1f} GiB"
        yield (
            f"The store is too small: in the last day, {len(lost)} objects ({size}) were removed for space less than a "
            "day after clients had requested them. Raise hubcache_size if the disk has space."
        )


def damage_problems(count: int) -> Iterator[str]:
    """Return a sentence if stored content was found damaged `count` times."""
    if count:
        yield (
            f"{count} stored {'object was' if count == 1 else 'objects were'} damaged and will be fetched again. No "
            "client received damaged content. If this number grows, check the disk and the memory of this machine."
        )


def fleet_problems(fleet: Mapping[str, Any] | None, *, public: bool) -> Iterator[str]:
    """Return a sentence if a node cannot use the bucket of its fleet."""
    if fleet is None or fleet["problem"] is None:
        return
    reason = "" if public else f": {fleet['problem']}"
    yield (
        f"This cache works without the bucket of its fleet{reason}. Pulls work, but what other nodes have fetched is "
        "fetched again. The cache tries again by itself; if this lasts, check the bucket, its endpoint and the "
        "credentials."
    )
