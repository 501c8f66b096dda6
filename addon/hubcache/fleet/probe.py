"""Tests whether a bucket keeps the promise on which leases depend: of racing conditional writes, exactly one succeeds.

Some object stores ignore the conditions, or check them without a lock. A lease there would have several holders, and
the fleet would fetch everything several times, so the cache refuses to start with such a bucket.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import cycle, islice

from ..oci.errors import ConfigError
from .bucket import Bucket, BucketUnavailable

_OBJECTS = 8
"""Objects that are raced for at the same time."""

_CREATORS = 4
"""Racing creations of each object, so there are 32 in all.

More of one object would not find more, and take long: SeaweedFS polls the lock of an object once a second, and refuses
the last of 32 after 11 seconds.
"""

_REPLACERS = 2
"""Racing replacements of each object."""

_CREATION = "creations of one object (If-None-Match: *)"
_REPLACEMENT = "replacements of one version (If-Match)"

type _Write = Callable[[Bucket, bytes], Awaitable[str | None]]
"""Writes a value under a condition, and returns its entity tag, or None where the condition does not hold."""


class _Outcome(Enum):
    WRITTEN = auto()
    REFUSED = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class _Racer:
    value: bytes
    outcome: _Outcome


async def check_conditional_writes(*buckets: Bucket) -> None:
    """Race for objects under `probe/`, with requests through each of several gateways to the same bucket.

    It takes some seconds with SeaweedFS. Raises `ConfigError` in one line when the bucket does not keep its promise,
    and `BucketUnavailable` when that cannot be found out now.
    """
    probe = _Probe(buckets)
    try:
        await probe.check_support()
        results = await asyncio.gather(*(probe.check_object() for _ in range(_OBJECTS)))
    finally:
        await probe.clean_up()
    errors = sorted(filter(None, results), key=lambda error: isinstance(error, BucketUnavailable))
    if errors:
        raise errors[0]


class _Probe:
    """The objects of one run."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._buckets = buckets
        self._id = secrets.token_hex(8)
        self._keys: list[str] = []

    async def check_support(self) -> None:
        """Raise `ConfigError` when plain writes are accepted and conditional ones are not."""
        await self._ping()
        problem = ""
        for bucket in self._buckets:
            for _ in range(2):  # a failure may be one of the network
                key = self._new_key()
                try:
                    e_tag = await bucket.create(key, _value())
                    await bucket.replace(key, _value(), e_tag or "")
                    break
                except BucketUnavailable as error:
                    problem = str(error)
                    await self._ping()
            else:
                raise _broken(f"it accepts plain writes and no conditional ones: {problem}")

    async def check_object(self) -> ConfigError | BucketUnavailable | None:
        """Race for one object; returns an error, so that the other races end before it is raised."""
        key = self._new_key()
        try:
            e_tag = await self._race(key, _CREATORS, _CREATION, lambda bucket, value: bucket.create(key, value))
            await self._race(key, _REPLACERS, _REPLACEMENT, lambda bucket, value: bucket.replace(key, value, e_tag))
        except (ConfigError, BucketUnavailable) as error:
            return error
        return None

    async def clean_up(self) -> None:
        """Delete the objects, unless the bucket is down."""
        with suppress(BucketUnavailable):
            await self._ping()
            await self._buckets[0].delete(self._ping_key, *self._keys)

    async def _race(self, key: str, count: int, kind: str, write: _Write) -> str:
        """Send racing writes of an object, and then one more; returns the entity tag of the one that succeeded."""
        turns = islice(cycle(self._buckets), max(count, len(self._buckets)))
        racers = await asyncio.gather(*(_attempt(write, bucket) for bucket in turns))
        await self._ping()  # after a request that failed, others would fail at once
        written = [racer for racer in racers if racer.outcome is _Outcome.WRITTEN]
        if len(written) > 1:
            raise _broken(f"{len(written)} of {len(racers)} racing {kind} succeeded; expected one")
        if not written:
            raise await self._none_written(key, kind, racers)
        for bucket in self._buckets:
            if await write(bucket, _value()) is not None:
                raise _broken(f"one of the {kind} succeeded after another had")
        stored = [await bucket.get(key) for bucket in self._buckets]
        if any(found is None or found.value != written[0].value for found in stored):
            raise _broken("a gateway does not return what was written")
        if not (stored[0] and stored[0].entry.e_tag):
            raise _broken("it gives no entity tags")
        return stored[0].entry.e_tag

    async def _none_written(self, key: str, kind: str, racers: Sequence[_Racer]) -> ConfigError | BucketUnavailable:
        """Return the error when no write is known to have succeeded: one whose response was lost may have."""
        stored = await self._buckets[0].get(key)
        was_written = stored is not None and any(racer.value == stored.value for racer in racers)
        if was_written or any(racer.outcome is _Outcome.UNKNOWN for racer in racers):
            return BucketUnavailable("conditional writes failed while they were tested")
        return _broken(f"none of {len(racers)} racing {kind} succeeded; expected one")

    async def _ping(self) -> None:
        for bucket in self._buckets:
            await bucket.ping(self._ping_key, b"")

    @property
    def _ping_key(self) -> str:
        return f"probe/{self._id}"

    def _new_key(self) -> str:
        self._keys.append(f"{self._ping_key}-{len(self._keys)}")
        return self._keys[-1]


async def _attempt(write: _Write, bucket: Bucket) -> _Racer:
    value = _value()
    try:
        e_tag = await write(bucket, value)
    except BucketUnavailable:
        return _Racer(value, _Outcome.UNKNOWN)
    return _Racer(value, _Outcome.REFUSED if e_tag is None else _Outcome.WRITTEN)


def _value() -> bytes:
    """Return a value that no other write has: entity tags are often hashes of values."""
    return secrets.token_hex(16).encode()


def _broken(reason: str) -> ConfigError:
    return ConfigError(f"hubcache_bucket: the bucket cannot be shared by a fleet: {reason}")
