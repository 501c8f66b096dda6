"""JSON from outside is a value or a `ValueError`, whatever it is."""

import contextlib

import pytest
from hubcache.oci.json_text import MAX_JSON, read_json
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "value"), [(b"{}", {}), (b'["a", 1]', ["a", 1]), (b" null ", None), (b'"\xc3\xa9"', "\xe9")]
)
def test_a_document_is_its_value(text: bytes, value: object) -> None:
    assert read_json(text) == value


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"<html>", b"\xff\xfe\x00", b"[" * 200_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000],
    ids=lambda text: repr(text[:8]),
)
def test_what_cannot_be_read_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


def test_a_document_is_read_up_to_its_bound() -> None:
    assert read_json(b"1" + b" " * (MAX_JSON - 1)) == 1
    with pytest.raises(ValueError, match="more than"):
        read_json(b"1" + b" " * MAX_JSON)
    with pytest.raises(ValueError, match="more than 3"):
        read_json(b"1000", 3)


@given(st.binary(max_size=40))
def test_nothing_else_is_raised(text: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_json(text)
