"""The account of a bucket's bytes, which all nodes keep together in the object `sweep/state`.

The sum of `used` and of all grants never exceeds the cap. A node uploads only what it has been granted. It takes a
grant by replacing the object (`If-Match`), and a sweep corrects `used` to what it has listed. So the cap holds,
whatever nodes and sweepers do at the same time:

* An upload that a listing does not show was granted when the listing began, or later. `landed` counts the bytes of
  ended uploads and only rises: a sweep adds what it rose by since the listing began.
* What is uncertain counts as used: a failed upload, one that ended during a listing, and one of a process that has
  crashed. The next sweep corrects that.
* The grant of a process that has disappeared remains for `GRANT_SECONDS`, which is longer than its last upload takes.

Sizes are in bytes, times in seconds by the bucket's clock.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ..decide.bucket_plan import RankClock
from .values import Fields, decode_value, encode_value

GRANT_SECONDS = 2700.0
"""A grant that was not renewed for this time is given up."""

SMALL_SHARE = 0.02
"""Share of the cap that is not granted: for manifests, tags, leases and the other small objects of ten minutes."""

TARGET_SHARE = 0.9
"""A sweep deletes blobs until this share of the cap is used."""

_MAX_BYTES = 4 << 20
"""Bytes of the object; 1,000 grants have some 60,000."""

_MAX_COUNT = 1 << 62
"""Largest number of bytes or objects."""

_MAX_TIME = 1e11
"""Latest time, and longest duration, in seconds: the year 5138. Later ones are none that calendars know."""

_MAX_NAME = 200
"""Characters of the id of a process."""

_UNKNOWN = "unknown"
"""In place of a process: what may have been granted by an account that was lost."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Bytes that a process may upload, or has uploaded without having reported it; `at` is when it last reported."""

    bytes: int
    at: float


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep: when and by which node it began, how many `seconds` it took, and what it deleted.

    `bytes` and `objects` are those that remain, by the first part of their keys.
    """

    at: float
    by: str
    bytes: Mapping[str, int] = field(default_factory=dict)
    objects: Mapping[str, int] = field(default_factory=dict)
    deleted: int = 0
    deleted_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SweepState:
    """The account. `used` are the bytes in the bucket, `cap` is that of the last sweeper, `sweep` its sweep."""

    id: str
    """Changes when the account was lost and begins again."""
    cap: int
    used: int
    landed: int
    sweep: Swept
    clock: RankClock
    grants: Mapping[str, Grant] = field(default_factory=dict)
    """By the id of a process: a node has a new id at each start, since it does not know what it had begun before."""

    @property
    def granted(self) -> int:
        """Bytes of all grants."""
        return sum(grant.bytes for grant in self.grants.values())

    def free(self, cap: int) -> int:
        """Return the bytes that can be granted, by the lower one of two caps."""
        return max(0, grantable(min(cap, self.cap)) - self.used - self.granted)

    def with_grant(self, process: str, kept: int, added: int, ended: int, now: float) -> Self:
        """Return the account after a process has reported, and has taken `added` bytes from those that are free.

        `kept` bytes of its grant may still be uploaded, or are being uploaded. Uploads of `ended` bytes have ended
        since it last reported.
        """
        grants = {name: grant for name, grant in self.grants.items() if name != process}
        if kept + added:
            grants[process] = Grant(kept + added, now)
        return replace(self, used=self.used + ended, landed=self.landed + ended, grants=grants)

    def unexpired(self, now: float) -> dict[str, Grant]:
        """Return the grants of processes that may still upload. The bucket's clock may have been set back since they
        reported."""
        return {process: grant for process, grant in self.grants.items() if abs(now - grant.at) <= GRANT_SECONDS}

    def after_sweep(self, before: Self, listed: int, cap: int, clock: RankClock, sweep: Swept) -> Self:
        """Return the account after a sweep. `before` is the account that it read before it listed the bucket, at
        `sweep.at`; `listed` the bytes that it has listed and not deleted. Both have the same `id`.
        """
        kept = before.unexpired(sweep.at)
        grants = {
            name: grant for name, grant in self.grants.items() if name in kept or before.grants.get(name) != grant
        }
        clock = max(clock, self.clock, key=lambda each: each.value)
        used = listed + self.landed - before.landed
        return replace(self, cap=cap, used=used, clock=clock, sweep=sweep, grants=grants)

    @classmethod
    def begun(cls, listed: int, cap: int, clock: RankClock, sweep: Swept, *, is_lost: bool) -> Self:
        """Return a first account. When an account `is_lost`, processes may have grants: then all that is free counts as
        granted until these have expired."""
        state = cls(secrets.token_hex(8), cap, listed, 0, sweep, clock)
        return replace(state, grants={_UNKNOWN: Grant(state.free(cap), sweep.at)}) if is_lost else state

    def encode(self) -> bytes:
        """Return the bytes of the object."""
        sweep = self.sweep
        return encode_value(
            {
                "id": self.id,
                "cap": self.cap,
                "used": self.used,
                "landed": self.landed,
                "at": sweep.at,
                "by": sweep.by,
                "seconds": sweep.seconds,
                "swept": {kind: [sweep.objects[kind], size] for kind, size in sweep.bytes.items()},
                "deleted": [sweep.deleted, sweep.deleted_bytes],
                "clock": self.clock.steps,
                "grants": {process: [grant.bytes, grant.at] for process, grant in self.grants.items()},
                "nonce": secrets.token_hex(8),  # S3's entity tags are hashes of the content
            }
        )

    @classmethod
    def decode(cls, value: bytes) -> Self | None:
        """Return what `encode` encoded; None for an object that this version cannot read."""
        fields = decode_value(value, _MAX_BYTES)
        if fields is None:
            return None
        try:
            return cls._decoded(fields)
        except (TypeError, ValueError, KeyError):
            return None

    @classmethod
    def _decoded(cls, fields: Fields) -> Self:
        """Raises `TypeError`, `ValueError` or `KeyError` for fields of another form."""
        swept = {_name(kind): (_count(count), _count(size)) for kind, (count, size) in _object(fields["swept"]).items()}
        deleted, deleted_bytes = _list(fields["deleted"])
        sweep = Swept(
            _time(fields["at"]),
            _name(fields["by"]),
            {kind: size for kind, (_, size) in swept.items()},
            {kind: count for kind, (count, _) in swept.items()},
            _count(deleted),
            _count(deleted_bytes),
            _time(fields["seconds"]),
        )
        steps = tuple((_number(time), _number(value)) for time, value in _list(fields["clock"]))
        grants = {
            _name(process): Grant(_count(size), _time(at)) for process, (size, at) in _object(fields["grants"]).items()
        }
        cap, used, landed = (_count(fields[name]) for name in ("cap", "used", "landed"))
        return cls(_name(fields["id"]), cap, used, landed, sweep, RankClock(steps), grants)


def grantable(cap: int) -> int:
    """Return the bytes of a cap that blobs may use, including those that are being uploaded."""
    return cap - int(cap * SMALL_SHARE)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_MAX_COUNT < value < _MAX_COUNT:
        raise TypeError(f"not a number: {value!r}")
    return float(value)


def _count(value: object) -> int:
    """Return a number of bytes or objects."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        raise TypeError(f"not a number of bytes or objects: {value!r}")
    return value


def _time(value: object) -> float:
    """Return a time or a duration in seconds."""
    number = _number(value)
    if not 0 <= number <= _MAX_TIME:
        raise ValueError(f"not a time: {value!r}")
    return number


def _name(value: object) -> str:
    """Return the id of an account or a process, or a part of a key; they are shown to users."""
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_NAME:
        raise TypeError(f"not a name: {value!r}")
    return value


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"not an object: {value!r}")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"not a list: {value!r}")
    return value
