"""Summarizes repeated measurements. Pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Summary:
    """Median, lowest and highest value. With three to five rounds the range says more than a standard deviation."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarize `values`; raises `ValueError` if there are none."""
        if not values:
            raise ValueError("a summary needs at least one value")
        return cls(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is at least as high as `percent` of all values (nearest rank).

    Raises `ValueError` if there are no values.
    """
    if not values:
        raise ValueError("a percentile needs at least one value")
    ordered = sorted(values)
    rank = math.ceil(percent / 100 * len(ordered))
    return ordered[max(rank, 1) - 1]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Summary | None:
    """Summary of the ratios round by round, so that slow drift of the machine cancels out.

    None if there are no rounds, if the numbers of rounds differ, or if a denominator is zero.
    """
    if len(numerators) != len(denominators) or not numerators or not all(denominators):
        return None
    return Summary.of([above / below for above, below in zip(numerators, denominators, strict=True)])
