"""Builds the fleet of an engine whose options name a bucket.

The modules of `fleet` and the library for object stores are imported here, and only for a fleet: without one, a start
takes no longer and no more memory.
"""

import asyncio
from typing import TYPE_CHECKING

from .oci.digest import Digest
from .operate.options import Settings
from .operate.status_report import StatusReport
from .operate.version import version
from .serve.access import Access
from .serve.cached_blobs import CachedBlobs
from .serve.messages import Change
from .serve.registry_service import RegistryService
from .serve.repository_view import RepositoryView
from .store.store import Store
from .transfer.fills import Fills
from .transfer.upstreams import Upstreams

if TYPE_CHECKING:
    from .fleet.connection import FleetConnection
    from .fleet.fleet import Fleet
    from .fleet.fleet_options import FleetTimes


async def connect(settings: Settings) -> "FleetConnection | None":
    """Return the connection to the fleet that the options name, None when they name none; raises `ConfigError`."""
    if settings.bucket is None:
        return None
    from .fleet.connection import FleetConnection
    from .fleet.fleet_options import FleetOptions

    options = FleetOptions(
        *(settings.bucket, settings.bucket_size, settings.bucket_private),
        *(settings.peer_listen, settings.peer_address, version()),
    )
    return await asyncio.to_thread(FleetConnection.open, options)


def disconnect(connection: "FleetConnection | None") -> None:
    """Close a connection that no fleet uses."""
    if connection is not None:
        connection.close()


def times(settings: Settings) -> "FleetTimes":
    """Return the option values that may change while a node runs."""
    from .fleet.fleet_options import FleetTimes

    return FleetTimes(
        *(settings.half_life, settings.expire_after, settings.tag_ttl, settings.negative_ttl, settings.max_stale)
    )


def build(
    connection: "FleetConnection | None",
    settings: Settings,
    store: Store,
    fills: Fills,
    access: Access,
    upstreams: Upstreams,
    service: RegistryService,
    blobs: CachedBlobs,
    report: StatusReport,
) -> "Fleet | None":
    """Return the fleet of an engine with these parts, None without a connection; its state is added to the report."""
    if connection is None:
        return None
    from .fleet.fleet import Fleet
    from .fleet.local_cache import LocalCache
    from .operate.fleet_report import FleetCollector, report_fleet

    def permits(host: str, repository: str, digest: Digest, outage: bool) -> bool:
        return access.can_read(host, repository, digest, None, outage=outage)

    async def begin_fill(host: str, repository: str, digest: Digest) -> None:
        upstream = upstreams.get(host)
        if upstream is not None:
            await blobs.begin(RepositoryView(upstream, repository), digest)

    async def content_changed(host: str, repository: str, reference: str, is_blob: bool, subject: str | None) -> None:
        upstream = upstreams.get(host)
        if upstream is not None:
            await service.content_changed(upstream.registry, Change(repository, reference, is_blob), subject)

    def pause(host: str, kind: str, seconds: float) -> None:
        upstream = upstreams.get(host)
        if upstream is not None:
            upstream.pause(kind, seconds)

    cache = LocalCache(store, fills, permits, begin_fill, access.visibility, content_changed, pause)
    fleet = Fleet(connection, cache, times(settings))
    metrics = report.metrics
    metrics.registry.register(FleetCollector(fleet.status, metrics.traffic))
    report.fleet = lambda: report_fleet(fleet.status(), metrics.traffic, metrics.pulls)
    return fleet
