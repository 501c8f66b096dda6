"""Rows of the retention policy are decoded exactly as they were encoded."""

import pytest
from hubcache.decide.retention_rows import decode_row, encode_row
from hypothesis import given
from hypothesis import strategies as st

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(FINITE, FINITE)
def test_row_round_trips_exactly(count: float, last: float) -> None:
    assert decode_row(encode_row((7, count, last, 1.5, True))) == (7, count, last, 1.5, True)


def test_row_of_an_early_store_is_read() -> None:
    assert decode_row("[7, 1.5, 2.0, 3.0, true]") == (7, 1.5, 2.0, 3.0, True)


@given(st.binary().filter(lambda data: len(data) != len(encode_row((0, 0.0, 0.0, 0.0, False)))))
def test_bytes_of_another_length_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        decode_row(data)
