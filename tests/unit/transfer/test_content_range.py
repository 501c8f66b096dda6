"""`Content-Range` of an upstream, which may say anything."""

from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.transfer.upstream_response import content_range


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("bytes " + "9" * 5000 + "-99/100", (-1, 100)),
        ("bytes 10-99/" + "9" * 5000, (10, None)),
        ("bytes 10-" + "9" * 5000, (10, None)),
        ("items 10-99/100", (-1, 100)),
        ("", (-1, None)),
    ],
)
def test_what_is_no_range_is_not_understood(text: str, understood: tuple[int, int | None]) -> None:
    """Python refuses to read a number of thousands of digits, with an error that nobody expects."""
    response: Any = SimpleNamespace(headers={"Content-Range": text})
    assert content_range(response) == understood


def test_ordinary_range_is_read() -> None:
    response: Any = SimpleNamespace(headers={"Content-Range": "bytes 10-99/100"})
    assert content_range(response) == (10, 100)
