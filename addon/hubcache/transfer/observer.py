"""The interface through which this package reports events. Metrics implement it, so they are not imported here."""

from typing import Protocol

from ..oci.digest import Digest
from ..oci.errors import HubcacheError


class Observer(Protocol):
    """Receives events; must not raise and must not block."""

    def upstream_answered(self, host: str, kind: str, status: str) -> None:
        """A request to an upstream ended: with this HTTP status, or `error` without a response."""

    def upstream_bytes(self, host: str, count: int) -> None:
        """Bytes of a body arrived from an upstream."""

    def rate_limit_seen(self, host: str, credential: str, limit: int | None, remaining: int) -> None:
        """A response to a request with this kind of credential had a `ratelimit-remaining` header."""

    def fills_changed(self, in_flight: int) -> None:
        """A fill began or ended."""

    def fill_ended(self, digest: Digest, error: HubcacheError | None) -> None:
        """A fill was committed, or failed with `error`."""
