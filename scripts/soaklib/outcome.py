"""What a run of the program recorded: pulls, faults and kills, samples of its resources, and the state of its store."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from .inspection import Findings
from .process import Sample
from .pulls import Pull, Results

MIN_SAMPLES = 6
"""With fewer samples, a third holds less than two, and the growth of a number is not judged."""

WARM_UP_SECONDS = 30.0
"""How long a run pulls before its growth is judged: the program allocates its buffers and fills its store then."""

_AFTER_SECONDS = 1.0


class TooFewSamplesError(Exception):
    """The program was not measured often enough to judge its growth."""


@dataclass
class Interval:
    """The time of a fault or a kill, until the program recovered from it. Pulls that overlap with it may fail."""

    name: str
    begun: float
    ended: float = float("inf")

    def meets(self, pull: Pull) -> bool:
        """Whether a pull overlaps with it."""
        return pull.begun < self.ended and pull.ended > self.begun

    def contains(self, moment: float) -> bool:
        """Whether a moment on the monotonic clock is in it."""
        return self.begun <= moment < self.ended


@dataclass
class Outcome:
    """The record of one run; times are seconds on the monotonic clock."""

    clients: Results
    troubles: list[Interval] = field(default_factory=list)
    """Faults and kills."""
    samples: list[Sample] = field(default_factory=list)
    warm_at: float = 0.0
    """When the program has warmed up: `WARM_UP_SECONDS` after the first pull."""
    over_cap: int | None = None
    """The most bytes by which the store exceeded its cap, negative when it stayed below; None when never measured."""
    findings: Findings = field(default_factory=Findings)
    complaints: list[str] = field(default_factory=list)
    """Lines of the program's log that must never occur."""

    @property
    def failed(self) -> list[Pull]:
        """Pulls that failed and overlap with no fault and no kill."""
        failed = (pull for pull in self.clients.pulls if pull.error)
        return [pull for pull in failed if not any(trouble.meets(pull) for trouble in self.troubles)]

    @property
    def succeeded(self) -> int:
        """How many pulls succeeded."""
        return sum(1 for pull in self.clients.pulls if not pull.error)

    @property
    def calm(self) -> list[Sample]:
        """Samples taken after the warm-up and outside of every fault and kill."""
        return [
            each
            for each in self.samples
            if each.at >= self.warm_at and not any(trouble.contains(each.at) for trouble in self.troubles)
        ]

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Record a fault or kill that lasts as long as the context, and `_AFTER_SECONDS` more."""
        interval = Interval(name, time.monotonic())
        self.troubles.append(interval)
        try:
            yield
        finally:
            interval.ended = time.monotonic() + _AFTER_SECONDS

    def thirds(self, name: str) -> tuple[float, float]:
        """The medians of a number in the first and in the last third of the calm samples.

        Calm samples alone compare like with like: a fault changes how many requests wait, and the memory, descriptors
        and tasks that they need. The first `WARM_UP_SECONDS` are excluded: growth there is what the program needs once,
        and growth that goes on shows in the rest.

        Raises `TooFewSamplesError` when there are fewer than `MIN_SAMPLES` calm samples, or when one reads 0: a running
        program has memory, descriptors and tasks, so a 0 means that the number was not measured.
        """
        values = [getattr(each, name) for each in self.calm]
        if len(values) < MIN_SAMPLES:
            raise TooFewSamplesError(f"only {len(values)} of {len(self.samples)} samples are calm")
        if not all(values):
            raise TooFewSamplesError(f"{values.count(0)} of {len(values)} samples read 0")
        third = len(values) // 3
        return median(values[:third]), median(values[-third:])
