"""Decides whether the rate limits of registries leave requests for background work."""

from collections.abc import Mapping

from .oci.registry import HUB_HOST
from .operate.metrics import Metrics
from .transfer.upstream import Upstream


class RateLimitReserve:
    """The pulls that background work leaves to clients: `reserve` is their number, `has_account` whether the cache
    pulls from Docker Hub with an account."""

    def __init__(self, upstreams: Mapping[str, Upstream], metrics: Metrics) -> None:
        self.reserve = 0
        self.has_account = False
        self._upstreams = upstreams
        self._metrics = metrics

    def may_spend(self, host: str) -> bool:
        """Whether background work may make a request to this registry that counts against its rate limit.

        That is, whether more remains than the reserve for clients, and no 429 asked for a pause.
        """
        upstream = self._upstreams.get(host)
        if upstream is None or upstream.is_rate_limited("manifest", ""):
            return False
        remaining = self.remaining(host)
        return remaining is None or remaining > self.reserve

    def remaining(self, host: str) -> int | None:
        """Return how many pulls the registry leaves to the cache's own requests, as last reported."""
        return self._metrics.remaining(host, "account" if self.has_account and host == HUB_HOST else "anonymous")
