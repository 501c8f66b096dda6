"""Parsers of option values; each error says what it got and what it expected."""

from collections.abc import Callable
from typing import Any

import pytest
from hubcache.oci.errors import ConfigError
from hubcache.operate import option_values as values
from hubcache.operate.option_values import Scrub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", 1000),
        ("1b", 1),
        ("1k", 1024),
        ("500M", 500 << 20),
        (" 2g ", 2 << 30),
        ("3 G", 3 << 30),
        ("1T", 1 << 40),
    ],
)
def test_size_units_are_powers_of_1024(text: str, expected: int) -> None:
    assert values.size(text) == values.size_limit(text) == values.size_or_automatic(text) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0", 0),
        ("0d", 0),
        ("45s", 45),
        ("10m", 600),
        (" 12h ", 43200),
        ("30 d", 30 * 86400),
        ("2w", 1209600),
    ],
)
def test_duration_without_a_unit_is_in_seconds(text: str, seconds: float) -> None:
    assert values.duration(text) == seconds


def test_empty_size_is_no_limit_or_an_automatic_one() -> None:
    assert values.size_limit("") == 0
    assert values.size_or_automatic("") is None
    assert values.size_or_automatic("0") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", None),
        ("", None),
        ("30d", Scrub(period=30 * 86400.0)),
        ("12h", Scrub(period=43200.0)),
        ("10m", Scrub(period=600.0)),
        ("10M", Scrub(rate=10 << 20)),
        ("1000", Scrub(rate=1000)),
    ],
)
def test_scrub_is_a_duration_or_a_rate(text: str, expected: Scrub | None) -> None:
    assert values.scrub(text) == expected


def test_peers_have_an_address_to_listen_at_and_one_to_connect_to() -> None:
    assert values.peer_listen_address(":5002") == ("", 5002)
    assert values.peer_listen_address("[::1]:5002") == ("::1", 5002)
    assert values.peer_address("") is None
    assert values.peer_address("cache-1.example") == ("cache-1.example", None)
    assert values.peer_address("[fd00::1]:99") == ("fd00::1", 99)


def test_bucket_is_a_url_without_a_slash_at_its_end() -> None:
    assert values.bucket("") is None
    assert values.bucket("s3://name") == "s3://name"
    assert values.bucket(" gs://my.name/hub_cache/a/ ") == "gs://my.name/hub_cache/a"
    assert values.bucket("az://name") == "az://name"


SIZES, DURATIONS = "such as 1000 (bytes), 500M, 50G or 2T", "such as 60 (seconds), 10m, 12h, 30d or 2w"


@pytest.mark.parametrize(
    ("parser", "got", "expected"),
    [
        *((values.size, text, f"a size above 0, {SIZES}") for text in ("", "0", "-5g", "lots", "1.5g", "5x", "G")),
        *((values.size_limit, text, f"a size above 0, {SIZES}") for text in ("0", "big")),
        *((values.size_or_automatic, text, f"a size, {SIZES}") for text in ("-1", "big", "5d")),
        *((values.duration, text, f"a duration, {DURATIONS}") for text in ("", "-1", "soon", "1.5h", "5x", "5D", "h")),
        *((values.duration_above_zero, text, f"a duration above 0, {DURATIONS}") for text in ("0", "0d", "-1d")),
        *((values.scrub, text, "a duration such as 12h or 30d, bytes per second such as 10M, or 0")
          for text in ("d", "-3d", "often", "0d", "0M")),
        (values.count, -1, "0 or more"),
        (values.per_minute, -1, "0 or more"),
        (values.choice("a", "b"), "c", "one of a, b"),
        *((values.listen_address, text, "HOST:PORT") for text in ("9180", "host:", ":80", "host:0", "host:65536")),
        *((values.peer_listen_address, text, "HOST:PORT or :PORT") for text in ("", "5002", "host", "::1:5002", ":0")),
        *((values.peer_address, text, "HOST or HOST:PORT") for text in (":5002", "host:x", "http://host", "host:0")),
        *((values.bucket, text, "a bucket such as s3://NAME, gs://NAME/PREFIX or az://NAME")
          for text in ("name", "s3://", "s3:name", "s3://-a", "file:///tmp", "s3://name/..", "s3://name?x=1", "s3://user:secret@name")),
        *((values.workers, text, "auto or a number from 1 to 64") for text in ("0", "65", "many", "-1")),
    ],
)  # fmt: skip
def test_error_says_what_it_got_and_what_it_expected(parser: Callable[[Any], Any], got: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parser(got)
    assert str(caught.value) == f"{got!r} is not {expected}"
