"""The commands of the running cache. The control socket and mitmweb's commands call these."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..operate.status_report import StatusReport
from ..serve.access import Access
from ..serve.best_effort import BestEffortWriter
from ..serve.cached_blobs import CachedBlobs
from ..serve.cached_manifests import CachedManifests
from ..serve.cached_referrers import CachedReferrers
from ..serve.prefetch import Prefetch
from ..store.store import Store
from ..transfer.fills import Fills
from ..transfer.upstreams import Upstreams
from .pins import PinCommands


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the cache that commands use. `may_spend` returns whether a registry's rate limit leaves a request
    for background work."""

    store: Store
    fills: Fills
    writer: BestEffortWriter
    access: Access
    manifests: CachedManifests
    blobs: CachedBlobs
    referrers: CachedReferrers
    prefetch: Prefetch
    upstreams: Upstreams
    may_spend: Callable[[str], bool]
    report: StatusReport


class Commands:
    """All commands."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.pins = PinCommands(parts.store, parts.upstreams)

    def status(self) -> dict[str, Any]:
        """Return the status of the cache, with names of private repositories and addresses of clients."""
        return self.parts.report.snapshot(public=False)
