"""Sizes and durations as people read them."""

import pytest
from hubcache.mitm import amounts


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (31_249_999, "31.2 MB"),
        (99_960_000, "100 MB"),
        (999_600_000, "1 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_size_has_the_unit_in_which_it_is_short(count: int, text: str) -> None:
    assert amounts.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.0031, "3 ms"),
        (0.0996, "0.1 s"),
        (0.42, "0.4 s"),
        (3.0, "3 s"),
        (119, "119 s"),
        (120, "2 min"),
        (10_800, "3 h"),
        (172_800, "2 d"),
    ],
)
def test_duration_has_the_largest_unit_of_which_there_are_two(seconds: float, text: str) -> None:
    assert amounts.duration(seconds) == text
