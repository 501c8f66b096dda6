"""The state of the retention policy as rows: their encoding, and which of them can be used at a start."""

import json
import struct
from collections.abc import Iterable, Mapping
from itertools import chain
from math import isfinite

_ROW = struct.Struct("<qddd?")

type Row = tuple[int, float, float, float, bool]
"""The state of one key: size, requests, last request (the policy's time), rank, whether it is stored."""

type Clock = tuple[float, float, float | None]
"""The state of the policy itself: clock of the ranks, the policy's time, and `now` of the last call."""


def encode_row(row: Row) -> bytes:
    """Return the row in binary form, because a start reads hundreds of thousands of rows."""
    return _ROW.pack(*row)


def decode_row(data: bytes | str) -> Row:
    """Return what `encode_row` encoded, or a row of an early store, which is JSON text.

    Raises `ValueError` or `TypeError` for anything else.
    """
    if isinstance(data, bytes):
        if len(data) != _ROW.size:
            raise ValueError(f"a row of the policy has {_ROW.size} bytes")
        row: Row = _ROW.unpack(data)
        return row
    size, requests, last, rank, is_stored = json.loads(data)
    return int(size), float(requests), float(last), float(rank), is_stored is True


def encode_clock(clock: Clock) -> str:
    """Return the policy's clocks as JSON text."""
    return json.dumps(clock)


def decode_clock(text: str) -> Clock:
    """Return what `encode_clock` encoded."""
    ranks, time, now = json.loads(text)
    return float(ranks), float(time), None if now is None else float(now)


def absent_row(size: int, requests: float, last: float) -> Row:
    """Return the row of content that is not stored; it has no rank."""
    return size, requests, last, 0.0, False


def usable_rows[K](rows: Mapping[K, Row]) -> tuple[dict[K, Row], dict[K, Row]]:
    """Return the rows of stored and of absent content, without those that contain impossible values."""
    stored: dict[K, Row] = {}
    absent: dict[K, Row] = {}
    for key, row in rows.items():
        size, requests, last, rank, is_stored = row
        if size >= 0 and requests >= 0 and isfinite(requests + last + rank):
            (stored if is_stored else absent)[key] = row
    return stored, absent


def usable_clock(clock: Clock | None, stored: Iterable[Row], absent: Iterable[Row]) -> Clock:
    """Return the clock, or one made from the rows where it is missing or contains impossible values: the clock of the
    ranks is then the lowest rank, which is its value when a full store has just evicted."""
    if clock is not None and all(isfinite(part) for part in clock if part is not None):
        return clock
    stored = list(stored)
    latest = max((last for _, _, last, _, _ in chain(absent, stored)), default=0.0)
    return min((rank for _, _, _, rank, _ in stored), default=0.0), latest, None
