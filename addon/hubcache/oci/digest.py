"""Content digests (OCI image-spec, descriptor.md, "Digests") and their verification while bytes flow."""

import hashlib
import re
from typing import Self

from .errors import BadUpstream, DigestInvalid

_is_digest = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}").fullmatch


class Digest(str):
    """The text of a digest of a registered algorithm, parsed: make one with `parse` or `of`, and it is never malformed.

    It is a `str` because the store has hundreds of thousands of them as keys: made, hashed and compared in C.
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
        """The sha256 digest of `data`."""
        return cls(f"sha256:{hashlib.sha256(data).hexdigest()}")

    @property
    def algorithm(self) -> str:
        """What comes before the colon, as `hashlib` names it."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """What comes after the colon."""
        return self.partition(":")[2]

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
