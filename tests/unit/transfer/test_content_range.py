"""Parsing `Content-Range`, which an upstream may set to anything."""

from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.transfer.upstream_response import content_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes " + "9" * 5000 + "-99/100", (-1, 100)),
        ("bytes 10-99/" + "9" * 5000, (10, None)),
        ("bytes 10-" + "9" * 5000, (10, None)),
        ("items 10-99/100", (-1, 100)),
        ("", (-1, None)),
    ],
)
def test_malformed_content_range_is_not_parsed(text: str, expected: tuple[int, int | None]) -> None:
    """`int()` raises `ValueError` for numbers with thousands of digits."""
    response: Any = SimpleNamespace(headers={"Content-Range": text})
    assert content_range(response) == expected


def test_valid_content_range_is_parsed() -> None:
    response: Any = SimpleNamespace(headers={"Content-Range": "bytes 10-99/100"})
    assert content_range(response) == (10, 100)
