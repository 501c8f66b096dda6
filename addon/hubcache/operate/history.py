"""Keeps the traffic of the last hours and days, in memory and in rows of the store's index.

The time is divided into minutes and into hours. Each minute of the last two hours and each hour of the last eight days
has a slot; the slots form rings, so that a new slot replaces the oldest one, in memory as well as in the rows. A clock
that jumps back or ahead counts into other slots; slots in the future are not shown.
"""

import json
import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field

from ..store.fact_rows import decode_or
from ..store.index_access import IndexAccess
from .image_counts import ImageCounts
from .saved_rows import SavedRows
from .traffic import Traffic

HOUR, DAY, WEEK = 3600, 86400, 7 * 86400

MINUTE_SLOTS = 120
"""Minutes that are kept."""

HOUR_SLOTS = 8 * 24
"""Hours that are kept: a week, and a day more, so that the oldest hour of the week is complete."""


@dataclass(slots=True)
class Slot:
    """The traffic since `start`, in seconds since the epoch."""

    start: int
    traffic: Traffic

    def encode(self) -> str:
        """Return JSON text."""
        return json.dumps([self.start, *self.traffic.encode()])

    @classmethod
    def decode(cls, text: str) -> "Slot":
        """Return what `encode` encoded; raises `ValueError` for anything else."""
        decoded = json.loads(text)
        if not isinstance(decoded, list) or type(decoded[:1] and decoded[0]) is not int:
            raise ValueError("not a slot")
        return cls(decoded[0], Traffic.decode(decoded[1:]))


@dataclass(slots=True)
class Ring:
    """The last `size` slots of `seconds` each; a `Table`."""

    name: str
    seconds: int
    size: int
    slots: dict[int, Slot] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)

    def add(self, now: float, traffic: Traffic) -> None:
        """Count traffic into the slot of `now`."""
        self.put(Slot(int(now) // self.seconds * self.seconds, traffic))

    def put(self, slot: Slot) -> None:
        """Add a slot's traffic to what its time has; a slot of another time is replaced."""
        place = slot.start // self.seconds % self.size
        known = self.slots.get(place)
        if known is not None and known.start == slot.start:
            slot = Slot(slot.start, known.traffic + slot.traffic)
        self.slots[place] = slot
        self.changed.add(place)

    def encode(self, number: int) -> str:
        """Return the text of the row for a slot."""
        return self.slots[number].encode()

    def restore(self, number: int, text: object) -> None:
        """Add a slot that was written earlier, unless a newer one has replaced it."""
        slot = decode_or(Slot.decode, text, None)
        if slot is None or slot.start % self.seconds != 0 or slot.start // self.seconds % self.size != number:
            return
        known = self.slots.get(number)
        if known is None or known.start <= slot.start:
            self.put(slot)

    def mark_all_changed(self) -> None:
        """Have all slots written."""
        self.changed.update(self.slots)

    def since(self, now: float, seconds: float) -> Iterator[Slot]:
        """Return the slots of the last `seconds`, the oldest first, without those in the future."""
        slots = sorted(self.slots.values(), key=lambda slot: slot.start)
        return (slot for slot in slots if now - min(seconds, self.seconds * self.size) < slot.start <= now)

    def points(self, now: float) -> list[dict[str, int]]:
        """Return what the slots have, for charts; a slot without traffic is missing."""
        return [{"start": slot.start} | slot.traffic.report() for slot in self.since(now, math.inf)]


class History:
    """The traffic over time. `totals` are counted elsewhere, from 0 since the start of the program."""

    def __init__(self, totals: Traffic) -> None:
        self._totals = totals
        self._counted = Traffic()
        """The part of the totals that is in the slots."""
        self._minutes = Ring("minute", 60, MINUTE_SLOTS)
        self._hours = Ring("hour", 3600, HOUR_SLOTS)
        self.images = ImageCounts()
        """The images that are pulled most."""
        self._rows = SavedRows(self._minutes, self._hours, self.images)

    def record(self, now: float) -> None:
        """Count what was added to the totals since the last call into the slots of `now`."""
        traffic = self._totals - self._counted
        if traffic:
            self._counted = copy(self._totals)
            for ring in (self._minutes, self._hours):
                ring.add(now, traffic)

    def ratios(self, now: float) -> dict[str, dict[str, int]]:
        """Return the traffic of the last hour, day and week."""
        slots = {
            "hour": self._minutes.since(now, HOUR),
            "day": self._hours.since(now, DAY),
            "week": self._hours.since(now, WEEK),
        }
        return {name: sum((slot.traffic for slot in each), Traffic()).report() for name, each in slots.items()}

    def points(self, now: float) -> dict[str, list[dict[str, int]]]:
        """Return the points of charts: those of each minute of two hours, and of each hour of eight days."""
        return {"minutes": self._minutes.points(now), "hours": self._hours.points(now)}

    async def save(self, access: IndexAccess) -> None:
        """Write what changed; read what an earlier run wrote first, once. Raises `StorageError`."""
        await self._rows.save(access)
