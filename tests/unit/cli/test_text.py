"""Numbers, times and names as text for people."""

import pytest
from hubcache.cli import text


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (50 << 30, "50.0 GiB"), (1 << 60, "1024.0 PiB")),
        *(((1 << 20) - 1, "1.0 MiB"), (None, "-"), (-2048, "-2.0 KiB")),
    ],
)
def test_size_has_the_largest_unit_of_which_there_is_one(count: int | None, shown: str) -> None:
    assert text.size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0014, "1 ms"), (1.26, "1.3 s"), (59, "59 s"), (90, "2 min"), (7200, "2 h"), (86400 * 3, "3 d"), (None, "-")],
)
def test_duration_has_one_unit(seconds: float | None, shown: str) -> None:
    assert text.duration(seconds) == shown


SECONDS = [(998.4, "2 s ago"), (1001.2, "in 1 s"), (999.7, "now")]


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (1000.0, "now"),
        (940.0, "1 min ago"),
        (1060.0, "in 1 min"),
        (998.4, "2 s ago"),
        (1001.2, "in 1 s"),
        (999.7, "now"),
        (None, "-"),
        (0, "-"),
    ],
)
def test_age_says_how_long_ago_a_time_was(at: float | None, shown: str) -> None:
    assert text.age(at, 1000.0) == shown


def test_percent_of_nothing_is_a_dash() -> None:
    assert (text.percent(1, 3), text.percent(1, 0), text.percent(None, 3)) == ("33 %", "-", "-")


def test_clean_text_has_no_control_characters() -> None:
    assert text.clean("a\x1b[31mb\nc\u202e\u2028\x9bd é") == r"a\x1b[31mb\nc\u202e\u2028\x9bd é"


def test_short_digest_is_that_of_docker() -> None:
    assert (text.short_digest("sha256:" + "a" * 64), text.short_digest("-")) == ("a" * 12, "-")
