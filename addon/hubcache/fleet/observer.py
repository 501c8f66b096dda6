"""The interface through which a fleet reports events. Metrics implement it, so they are not imported here."""

from typing import Protocol

from .bucket import BucketObserver


class FleetObserver(BucketObserver, Protocol):
    """Receives events; must not raise and must not block."""

    def bytes_received(self, tier: str, count: int) -> None:
        """Bytes of content arrived from a `tier`: `bucket` or `peer`. Those from a registry are reported elsewhere."""

    def upload_ended(self, outcome: str, size: int) -> None:
        """A file of `size` bytes was `stored` in the bucket, `refused` because the bucket has no space, or `failed`."""
