"""The commands of the running cache. The control socket and mitmweb's commands call these."""

from typing import Any

from ..oci.image_name import ImageName
from .content import ContentCommands
from .export import Export
from .fleet import FleetCommands
from .images import Images
from .import_record import ImportRecord
from .parts import Parts
from .pins import PinCommands
from .purge import Purge
from .registry_probe import RegistryProbe
from .verify import Verify
from .warm import Warm


class Commands:
    """All commands."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.images = Images(parts.store, lambda: parts.manifests.tag_lifetime)
        self.pins = PinCommands(parts.store, parts.upstreams)
        self.fleet = FleetCommands(parts)
        self.purge = Purge(parts, self.fleet)
        self.verify = Verify(parts)
        self.registry_probe = RegistryProbe(parts.upstreams)
        self.warm = Warm(parts, self._pin)
        self.content = ContentCommands(parts)
        self.export = Export(parts)
        self.import_record = ImportRecord(parts)

    def status(self) -> dict[str, Any]:
        """Return the status of the cache, with names of private repositories and addresses of clients."""
        return self.parts.report.snapshot(public=False)

    async def _pin(self, image: ImageName) -> None:
        await self.pins.pin(image)
