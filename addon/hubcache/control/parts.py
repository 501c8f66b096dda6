"""The parts of the cache that commands use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..operate.status_report import StatusReport
from ..serve.access import Access
from ..serve.best_effort import BestEffortWriter
from ..serve.cached_blobs import CachedBlobs
from ..serve.cached_manifests import CachedManifests
from ..serve.cached_referrers import CachedReferrers
from ..serve.manifest_validation import ManifestValidation
from ..serve.prefetch import Prefetch
from ..store.store import Store
from ..transfer.fills import Fills
from ..transfer.upstreams import Upstreams

if TYPE_CHECKING:
    from ..fleet.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of the cache that commands use. `may_spend` returns whether a registry's rate limit leaves a request
    for background work, `remaining` how many requests it leaves in all, None when the registry did not report it.
    `fleet` is None for a cache that works alone."""

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
    validation: ManifestValidation
    remaining: Callable[[str], int | None]
    fleet: "Fleet | None"
