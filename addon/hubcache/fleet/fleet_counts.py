"""Counts what a node does in its fleet, since the start of the node."""

from collections import Counter


class FleetCounts:
    """A `FleetObserver` that keeps totals."""

    def __init__(self) -> None:
        self.requests: dict[str, Counter[str]] = {}
        """Requests to the bucket by kind and outcome."""
        self.requests_of_pulls = Counter[str]()
        """Those that were made for pulls, by kind."""
        self.received = Counter[str]()
        """Bytes of content that arrived, by tier."""
        self.uploads = Counter[str]()
        """Uploads that ended, by outcome."""
        self.uploaded_bytes = 0

    def bucket_answered(self, kind: str, outcome: str, *, is_of_pulls: bool) -> None:
        self.requests.setdefault(kind, Counter())[outcome] += 1
        self.requests_of_pulls[kind] += is_of_pulls

    def bytes_received(self, tier: str, count: int) -> None:
        self.received[tier] += count

    def upload_ended(self, outcome: str, size: int) -> None:
        self.uploads[outcome] += 1
        if outcome == "stored":
            self.uploaded_bytes += size
