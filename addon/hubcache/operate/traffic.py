"""The numbers by which the use of a cache is measured: requests and bytes, and how many of them needed no upstream."""

from dataclasses import astuple, dataclass, fields
from typing import Self

CONTENT_KINDS = frozenset({"manifest", "blob", "referrers"})
"""Kinds of requests that are counted: those for content, not those for tokens and `/v2/`."""

HITS = frozenset({"hit", "revalidated", "stale"})
"""Results of requests that were answered from the store."""

_REDIRECTS = frozenset({"301", "302", "303", "307", "308"})


@dataclass(slots=True)
class Traffic:
    """The traffic of some time. Forwarded requests (pushes, private images that are not stored) and errors do not
    count; bytes are those of blobs."""

    requests: int = 0
    """Requests of clients for content that were answered from the store or fetched."""
    hits: int = 0
    """Those of `requests` that were answered from the store."""
    bytes: int = 0
    """Bytes that were sent to clients."""
    bytes_from_store: int = 0
    """Those of `bytes` that were read from the store."""
    upstream_requests: int = 0
    """Requests for content that were sent to registries, with the redirects that followed."""
    upstream_bytes: int = 0
    """Bytes that were received from registries."""

    @property
    def saved_requests(self) -> int:
        """Number of requests for content that registries did not receive: clients sent more than the cache did."""
        return max(0, self.requests - self.upstream_requests)

    @property
    def saved_bytes(self) -> int:
        """Number of bytes that were sent more than once for one transfer from a registry."""
        return max(0, self.bytes - self.upstream_bytes)

    def count_answer(self, kind: str, result: str, count: int) -> None:
        """Count answered requests, by the labels of metrics."""
        if kind in CONTENT_KINDS and (result in HITS or result == "miss"):
            self.requests += count
            self.hits += count * (result in HITS)

    def count_sent(self, source: str, count: int) -> None:
        """Count body bytes that were sent to clients from a source (`store`, `fill` or `upstream`)."""
        self.bytes += count
        if source == "store":
            self.bytes_from_store += count

    def count_upstream(self, kind: str, status: str) -> None:
        """Count a request to an upstream; a redirect and the request that follows it count once."""
        if kind in CONTENT_KINDS and status not in _REDIRECTS:
            self.upstream_requests += 1

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(one - two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def __bool__(self) -> bool:
        """Whether anything was counted."""
        return any(astuple(self))

    def report(self) -> dict[str, int]:
        """Return all numbers by their names."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        return numbers | {"saved_requests": self.saved_requests, "saved_bytes": self.saved_bytes}

    def encode(self) -> list[int]:
        """Return the numbers that are counted, for `decode`."""
        return list(astuple(self))

    @classmethod
    def decode(cls, numbers: object) -> Self:
        """Return what `encode` encoded; raises `ValueError` for anything else."""
        if not isinstance(numbers, list) or len(numbers) != len(fields(cls)):
            raise ValueError(f"not {len(fields(cls))} numbers")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a count is a number of at least 0")
        return cls(*numbers)
