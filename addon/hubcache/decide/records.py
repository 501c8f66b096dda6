"""What the store remembers, as frozen records, and their encoding as JSON text or raw bytes (never pickle).

Times are seconds since the epoch, sizes are bytes.
"""

import json
import struct
from dataclasses import dataclass
from typing import Self

from ..oci.digest import Digest
from .retention import Clock, Row

_ROW = struct.Struct("<qddd?")


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag answered to one `Accept` negotiation, and when the upstream last said so."""

    digest: Digest
    media_type: str
    size: int
    validated_at: float


@dataclass(frozen=True, slots=True)
class ReferrersRecord:
    """What the upstream said to one question about the referrers of a digest, and when it last said so.

    `digest` is that of the answer's body, which is stored as a manifest; None when the answer was 404. `filters` is
    the header `OCI-Filters-Applied`; `following` the query of the next page, both empty where there was none.
    """

    digest: Digest | None
    validated_at: float
    filters: str = ""
    following: str = ""


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """A manifest's exact bytes and the media type that the upstream gave them."""

    media_type: str
    body: bytes

    def encode(self) -> bytes:
        """A line with the media type, then the bytes as they came."""
        return self.media_type.encode("latin-1", "replace").replace(b"\n", b" ") + b"\n" + self.body

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Inverse of `encode`."""
        media_type, _, body = data.partition(b"\n")
        return cls(media_type.decode("latin-1"), body)


@dataclass(frozen=True, slots=True)
class Link:
    """A digest is known to belong to a repository; `size` where a manifest told it."""

    size: int | None
    confirmed: bool = True
    """Whether the upstream said so, or only a manifest did, which anybody can write and push."""
    given: bool = False
    """Whether the upstream gave the bytes through this repository: that is more than saying that it has them."""

    def encode(self) -> str:
        """JSON text. A program that does not know `given` reads it as not confirmed, and asks."""
        return json.dumps([self.size, "given" if self.given else self.confirmed])

    @classmethod
    def decode(cls, text: str) -> Self:
        """Inverse of `encode`; an early store has the size alone, and so no word of the upstream."""
        told = json.loads(text)
        size, word = told if isinstance(told, list) else (told, False)
        return cls(size if isinstance(size, int) else None, word is True or word == "given", word == "given")


@dataclass(frozen=True, slots=True)
class Visibility:
    """Whether an anonymous read of a repository succeeded when it was last tried."""

    public: bool
    checked_at: float

    def encode(self) -> str:
        """JSON text."""
        return json.dumps([self.public, self.checked_at])

    @classmethod
    def decode(cls, text: str) -> Self:
        """Inverse of `encode`."""
        public, checked_at = json.loads(text)
        return cls(public is True, float(checked_at))


def encode_hosts(hosts: frozenset[str]) -> str:
    """JSON text of the registries that gave the bytes of private content."""
    return json.dumps(sorted(hosts))


def decode_hosts(text: str) -> frozenset[str]:
    """Inverse of `encode_hosts`; an early store has an empty text, and so no registry that is known to have them."""
    return frozenset(host for host in json.loads(text or "[]") if isinstance(host, str))


def encode_tags(records: dict[str, TagRecord]) -> str:
    """JSON text of a tag's records by negotiation."""
    rows = {key: [str(r.digest), r.media_type, r.size, r.validated_at] for key, r in records.items()}
    return json.dumps(rows)


def decode_tags(text: str) -> dict[str, TagRecord]:
    """Inverse of `encode_tags`."""
    return {
        key: TagRecord(Digest.parse(digest), media_type, int(size), float(validated_at))
        for key, (digest, media_type, size, validated_at) in json.loads(text).items()
    }


def encode_referrers(records: dict[str, ReferrersRecord]) -> str:
    """JSON text of what is known of a digest's referrers, by question."""
    rows = {
        key: [None if r.digest is None else str(r.digest), r.validated_at, r.filters, r.following]
        for key, r in records.items()
    }
    return json.dumps(rows)


def decode_referrers(text: str) -> dict[str, ReferrersRecord]:
    """Inverse of `encode_referrers`."""
    return {
        key: ReferrersRecord(None if digest is None else Digest.parse(digest), float(at), filters, following)
        for key, (digest, at, filters, following) in json.loads(text).items()
    }


def encode_row(row: Row) -> bytes:
    """What the retention policy knows of one digest, packed: a start reads hundreds of thousands of them."""
    return _ROW.pack(*row)


def decode_row(data: bytes | str) -> Row:
    """Inverse of `encode_row`; an early store has JSON text. Raises `ValueError` or `TypeError` for anything else."""
    if isinstance(data, bytes):
        if len(data) != _ROW.size:
            raise ValueError(f"a row of the policy has {_ROW.size} bytes")
        row: Row = _ROW.unpack(data)
        return row
    size, requests, last, rank, resident = json.loads(data)
    return int(size), float(requests), float(last), float(rank), resident is True


def encode_clock(clock: Clock) -> str:
    """JSON text of the retention policy's clocks."""
    return json.dumps(clock)


def decode_clock(text: str) -> Clock:
    """Inverse of `encode_clock`."""
    ranks, own, now = json.loads(text)
    return float(ranks), float(own), None if now is None else float(now)
