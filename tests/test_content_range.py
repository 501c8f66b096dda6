"""`Content-Range` of an upstream, which may say anything."""

from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.oci.errors import BadUpstream
from hubcache.transfer.upstream import _content_range


@pytest.mark.parametrize(
    "text", ["bytes " + "9" * 5000 + "-99/100", "bytes 10-99/" + "9" * 5000, "bytes 10-" + "9" * 5000]
)
def test_number_without_an_end_is_an_error_of_the_upstream(text: str) -> None:
    """Python refuses to read it, with an error that nobody expects."""
    response: Any = SimpleNamespace(headers={"Content-Range": text})
    with pytest.raises(BadUpstream):
        _content_range(response, 10)


def test_ordinary_range_is_read() -> None:
    response: Any = SimpleNamespace(headers={"Content-Range": "bytes 10-99/100"})
    assert _content_range(response, 10) == (10, 100)
