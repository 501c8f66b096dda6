"""Records of the store's facts, and their encoding as JSON text or raw bytes (never pickle).

Times are seconds since the epoch, sizes are bytes.
"""

import json
from dataclasses import dataclass
from typing import Self

from ..oci.digest import Digest


@dataclass(frozen=True, slots=True)
class TagRecord:
    """The manifest that the upstream returned for a tag and one content negotiation, and when it was last validated."""

    digest: Digest
    media_type: str
    size: int
    validated_at: float


@dataclass(frozen=True, slots=True)
class ReferrersRecord:
    """The upstream's answer to one question about the referrers of a digest, and when it was last validated.

    `digest` is that of the answer's body, which is stored as a manifest; None when the answer was 404. `filters` is
    the header `OCI-Filters-Applied`; `following` the query of the next page; both are empty where there was none.
    """

    digest: Digest | None
    validated_at: float
    filters: str = ""
    following: str = ""


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """A manifest's exact bytes, and the media type that the upstream gave it."""

    media_type: str
    body: bytes

    def encode(self) -> bytes:
        """Return a line with the media type, followed by the unchanged body."""
        return self.media_type.encode("latin-1", "replace").replace(b"\n", b" ") + b"\n" + self.body

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return what `encode` encoded."""
        media_type, _, body = data.partition(b"\n")
        return cls(media_type.decode("latin-1"), body)


@dataclass(frozen=True, slots=True)
class Link:
    """A digest that belongs to a repository; `size` where a manifest lists it."""

    size: int | None
    confirmed: bool = True
    """Whether the upstream confirmed it. Otherwise only a manifest lists it, which any client can write and push."""
    given: bool = False
    """Whether the upstream gave the bytes through this repository, which is more than confirming that it has them."""

    def encode(self) -> str:
        """Return JSON text. An older program, which does not know `given`, reads the link as not confirmed, and asks
        the upstream."""
        return json.dumps([self.size, "given" if self.given else self.confirmed])

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return what `encode` encoded; in an early store it is the size alone, and the link is not confirmed."""
        decoded = json.loads(text)
        size, source = decoded if isinstance(decoded, list) else (decoded, False)
        return cls(size if isinstance(size, int) else None, source is True or source == "given", source == "given")


@dataclass(frozen=True, slots=True)
class Visibility:
    """Whether an anonymous read of a repository succeeded when it was last tried."""

    public: bool
    checked_at: float

    def encode(self) -> str:
        """Return JSON text."""
        return json.dumps([self.public, self.checked_at])

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return what `encode` encoded."""
        public, checked_at = json.loads(text)
        return cls(public is True, float(checked_at))


def encode_hosts(hosts: frozenset[str]) -> str:
    """Return the registries that gave the bytes of private content as JSON text."""
    return json.dumps(sorted(hosts))


def decode_hosts(text: str) -> frozenset[str]:
    """Return what `encode_hosts` encoded; the text of an early store is empty, which means that none is known."""
    return frozenset(host for host in json.loads(text or "[]") if isinstance(host, str))


def encode_tags(records: dict[str, TagRecord]) -> str:
    """Return a tag's records by negotiation as JSON text."""
    rows = {key: [str(r.digest), r.media_type, r.size, r.validated_at] for key, r in records.items()}
    return json.dumps(rows)


def decode_tags(text: str) -> dict[str, TagRecord]:
    """Return what `encode_tags` encoded."""
    return {
        key: TagRecord(Digest.parse(digest), media_type, int(size), float(validated_at))
        for key, (digest, media_type, size, validated_at) in json.loads(text).items()
    }


def encode_referrers(records: dict[str, ReferrersRecord]) -> str:
    """Return the records about a digest's referrers by question as JSON text."""
    rows = {
        key: [None if r.digest is None else str(r.digest), r.validated_at, r.filters, r.following]
        for key, r in records.items()
    }
    return json.dumps(rows)


def decode_referrers(text: str) -> dict[str, ReferrersRecord]:
    """Return what `encode_referrers` encoded."""
    return {
        key: ReferrersRecord(None if digest is None else Digest.parse(digest), float(at), filters, following)
        for key, (digest, at, filters, following) in json.loads(text).items()
    }
