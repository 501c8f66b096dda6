"""Content digests (OCI image-spec, descriptor.md, "Digests"), and their verification while bytes arrive."""

import hashlib
import re
from typing import Self

from .errors import BadUpstream, DigestInvalid

_is_digest = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}").fullmatch


class Digest(str):
    """A digest of a registered algorithm. `parse` and `of` create it, so that it is never malformed.

    It is a `str` because the store has hundreds of thousands of digests as keys, which are then created, hashed and
    compared in C.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `ALGORITHM:HEX`; raises `DigestInvalid`."""
        if _is_digest(text) is None:
            raise DigestInvalid("provided digest did not match the expected form", {"digest": text[:200]})
        return cls(text)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the sha256 digest of `data`."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        """The part before the colon, a name that `hashlib` knows."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The part after the colon."""
        return self.partition(":")[2]

    def matches(self, data: bytes) -> bool:
        """Whether `data` has this digest."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.hex


class Verifier:
    """Hashes and counts content as it arrives, and verifies size and digest at the end."""

    def __init__(self, digest: Digest, size: int | None) -> None:
        self.digest = digest
        self.size = size
        self.received = 0
        self._hash = hashlib.new(digest.algorithm)

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes; raises `BadUpstream` as soon as there are more than `size`."""
        self.received += len(data)
        if self.size is not None and self.received > self.size:
            raise BadUpstream(
                "upstream sent more bytes than expected",
                {"digest": str(self.digest), "expected": self.size, "got": self.received},
            )
        self._hash.update(data)

    def finish(self) -> None:
        """Raise `BadUpstream` unless size and digest match."""
        if self.size is not None and self.received != self.size:
            raise BadUpstream(
                "upstream sent fewer bytes than expected",
                {"digest": str(self.digest), "expected": self.size, "got": self.received},
            )
        if self._hash.hexdigest() != self.digest.hex:
            got = f"{self.digest.algorithm}:{self._hash.hexdigest()}"
            raise BadUpstream("content does not match its digest", {"expected": str(self.digest), "got": got})
