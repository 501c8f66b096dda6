"""Content digests (OCI image-spec, descriptor.md, "Digests") and their verification while bytes flow."""

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from .errors import BadUpstream, DigestInvalid

_LENGTHS = {"sha256": 64, "sha512": 128}
_PATTERN = re.compile(r"(sha256|sha512):([a-f0-9]+)")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A parsed digest of a registered algorithm; it cannot exist malformed. Make one with `parse` or `of`."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `ALGORITHM:HEX`; raises `DigestInvalid`."""
        match = _PATTERN.fullmatch(text)
        if match is None or len(match[2]) != _LENGTHS[match[1]]:
            raise DigestInvalid("provided digest did not match the expected form", {"digest": text[:200]})
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The sha256 digest of `data`."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    def matches(self, data: bytes) -> bool:
        """Whether `data` has this digest."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.hex


class Verifier:
    """Hashes and counts content as it arrives; `finish` tells whether it was what the digest promises."""

    def __init__(self, digest: Digest, size: int | None) -> None:
        self.digest = digest
        self.size = size
        self.received = 0
        self._hash = hashlib.new(digest.algorithm)

    def update(self, data: bytes) -> None:
        """Take the next bytes; raises `BadUpstream` as soon as there are more than promised."""
        self.received += len(data)
        if self.size is not None and self.received > self.size:
            raise BadUpstream(
                "upstream sent more bytes than it promised",
                {"digest": str(self.digest), "expected": self.size, "got": self.received},
            )
        self._hash.update(data)

    def finish(self) -> None:
        """Raise `BadUpstream` unless size and digest are as promised."""
        if self.size is not None and self.received != self.size:
            raise BadUpstream(
                "upstream sent fewer bytes than it promised",
                {"digest": str(self.digest), "expected": self.size, "got": self.received},
            )
        if self._hash.hexdigest() != self.digest.hex:
            got = f"{self.digest.algorithm}:{self._hash.hexdigest()}"
            raise BadUpstream("content does not match its digest", {"expected": str(self.digest), "got": got})
