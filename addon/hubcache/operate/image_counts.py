"""Counts the pulls of each image by day, and returns the images that are pulled most."""

import json
import math
from dataclasses import dataclass, field
from typing import Self

from ..store.fact_rows import decode_or
from .pull import Pull

MAX_IMAGES = 500
"""Images that are counted. A new one replaces the one with the fewest pulls, of several the one that was pulled
longest ago."""

DAYS = 7
"""Days over which pulls are counted, with the present one."""

_MAX_NAME = 500
_DAY = 86400


@dataclass(slots=True)
class ImageCount:
    """The pulls of an image: number and bytes by day (since the epoch), and when the last one ended."""

    name: str
    registry: str
    repository: str
    last: float = 0.0
    days: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, now: float, size: int) -> None:
        """Count a pull of `size` bytes."""
        day = int(now) // _DAY
        pulls, sent = self.days.get(day, (0, 0))
        self.days[day] = (pulls + 1, sent + size)
        self.days = dict(sorted(self.days.items())[-DAYS:])
        self.last = max(self.last, now)

    def merge(self, other: "ImageCount") -> None:
        """Add the counts of an earlier run."""
        for day, (pulls, sent) in other.days.items():
            known_pulls, known_sent = self.days.get(day, (0, 0))
            self.days[day] = (known_pulls + pulls, known_sent + sent)
        self.days = dict(sorted(self.days.items())[-DAYS:])
        self.last = max(self.last, other.last)

    def total(self, now: float) -> tuple[int, int]:
        """Return the number and the bytes of the pulls of the last days."""
        today = int(now) // _DAY
        counts = [count for day, count in self.days.items() if today - DAYS < day <= today]
        return sum(pulls for pulls, _ in counts), sum(sent for _, sent in counts)

    def encode(self) -> str:
        """Return JSON text."""
        return json.dumps([self.name, self.registry, self.repository, self.last, list(self.days.items())])

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return what `encode` encoded; raises `ValueError` or `TypeError` for anything else."""
        name, registry, repository, last, days = json.loads(text)
        if not all(isinstance(each, str) and len(each) <= _MAX_NAME for each in (name, registry, repository)):
            raise ValueError("not the name of an image")
        if not math.isfinite(last) or any(type(number) is not int for day, counts in days for number in (day, *counts)):
            raise ValueError("not the counts of days")
        return cls(name, registry, repository, last, {day: (pulls, sent) for day, (pulls, sent) in days[-DAYS:]})


class ImageCounts:
    """The counts of all images; a `Table`. Rows are numbered from 0 to `MAX_IMAGES` - 1."""

    name = "image"

    def __init__(self) -> None:
        self.changed: set[int] = set()
        self._images: dict[int, ImageCount] = {}
        self._numbers: dict[str, int] = {}

    def add(self, pull: Pull, now: float) -> None:
        """Count a pull that has ended, unless it failed."""
        if pull.result == "failed" or len(pull.image) > _MAX_NAME:
            return
        number = self._numbers.get(pull.image)
        if number is None:
            number = self._replace(ImageCount(pull.image, pull.registry, pull.repository), now)
        self._images[number].add(now, pull.sent)
        self.changed.add(number)

    @property
    def count(self) -> int:
        """Number of images that are counted."""
        return len(self._images)

    def top(self, now: float, count: int) -> list[tuple[ImageCount, int, int]]:
        """Return the images with the most pulls in the last days, with number and bytes of these pulls."""
        totals = [(image, *image.total(now)) for image in self._images.values()]
        totals.sort(key=lambda each: (each[1], each[0].last), reverse=True)
        return [each for each in totals[:count] if each[1]]

    def _replace(self, image: ImageCount, now: float) -> int:
        number = len(self._images)
        if number >= MAX_IMAGES:
            number = min(self._images, key=lambda each: (self._images[each].total(now)[0], self._images[each].last))
            del self._numbers[self._images[number].name]
        self._images[number], self._numbers[image.name] = image, number
        return number

    # -- rows -----------------------------------------------------------------------------------------------------

    def encode(self, number: int) -> str:
        """Return the text of a row."""
        return self._images[number].encode()

    def restore(self, _: int, text: object) -> None:
        """Add an image that was written earlier."""
        image = decode_or(ImageCount.decode, text, None)
        if image is None:
            return
        known = self._numbers.get(image.name)
        if known is not None:
            self._images[known].merge(image)
        elif len(self._images) < MAX_IMAGES:
            self._replace(image, image.last)

    def mark_all_changed(self) -> None:
        """Have all rows written."""
        self.changed.update(self._images)
