"""What the transfer side reports while it works. Metrics implement it; arrows point down, so they are not imported."""

from typing import Protocol

from ..oci.digest import Digest
from ..oci.errors import HubcacheError


class Observer(Protocol):
    """Receives facts; must not raise and must not block."""

    def upstream_answered(self, host: str, kind: str, status: str) -> None:
        """One request to an upstream ended: HTTP status, or `error` when there was none."""

    def upstream_bytes(self, host: str, count: int) -> None:
        """Body bytes arrived from an upstream."""

    def rate_limit_seen(self, host: str, credential: str, limit: int | None, remaining: int) -> None:
        """A `ratelimit-remaining` header was seen on an answer to this kind of credential."""

    def fills_changed(self, in_flight: int) -> None:
        """A fill began or ended."""

    def fill_ended(self, digest: Digest, error: HubcacheError | None) -> None:
        """A fill was committed, or failed with `error`."""
