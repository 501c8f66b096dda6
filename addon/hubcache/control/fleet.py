"""Shows the fleet of the cache, and removes purged content from its bucket."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ..fleet.fleet_status import LeaseStatus
from ..oci.digest import Digest
from ..oci.image_name import ImageName
from .errors import Refused
from .parts import Parts

MAX_LEASES = 200
"""Leases that `FleetCommands.show` lists: each costs a request."""


class FleetCommands:
    """The commands about the fleet that the cache belongs to."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self) -> dict[str, Any]:
        """Return the state of the fleet with the leases of all nodes, None for these while the bucket does not answer.

        Raises `Refused` for a cache that works alone.
        """
        fleet, report = self._parts.fleet, self._parts.report.fleet()
        if fleet is None or report is None:
            raise Refused("this cache works alone; hubcache_bucket makes it a node of a fleet")
        leases: list[LeaseStatus] | None = await fleet.list_leases(MAX_LEASES)
        return report | {"leases": None if leases is None else [asdict(lease) for lease in leases]}

    async def purge(self, tags: Iterable[ImageName], repository: ImageName | None, removed: Iterable[Digest]) -> bool:
        """Remove tags and content from the bucket; returns whether there is a bucket and it answered.

        Manifests are removed for one repository, blobs for all.
        """
        fleet = self._parts.fleet
        if fleet is None:
            return False
        place = None if repository is None else (repository.host, repository.repository)
        names = [(tag.host, tag.repository, str(tag.reference)) for tag in tags]
        return await fleet.purge(names, place, list(removed))
