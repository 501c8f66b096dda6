"""Pins images, so that their content is never evicted, and removes pins that were added in this way."""

from typing import Any

from ..oci.image_name import ImageName
from ..store.store import Store
from ..transfer.upstreams import Upstreams
from .errors import InvalidCommand, NotKnown, Refused


class PinCommands:
    """Adds pins to those of the option `hubcache_pins`; they are in the store, and survive a restart."""

    def __init__(self, store: Store, upstreams: Upstreams) -> None:
        self._store = store
        self._upstreams = upstreams

    async def pin(self, image: ImageName) -> dict[str, Any]:
        """Pin an image, stored or not: what is not stored is kept once it is.

        Raises `InvalidCommand` for an image of a registry that is not cached, and `StorageError`.
        """
        if not self._upstreams.serves(image.host):
            raise InvalidCommand(f"{image.host} is not in hubcache_registries, so that {image} is never stored")
        is_new = await self._store.pins.add(image)
        self._store.update_pinned()
        is_stored = self._is_stored(image)
        state = "is pinned" if is_new else "was pinned before"
        message = f"{image} {state}" if is_stored else f"{image} {state}; it is not stored, and is kept once it is"
        return {"image": str(image), "pinned": True, "changed": is_new, "stored": is_stored, "message": message}

    async def unpin(self, image: ImageName) -> dict[str, Any]:
        """Remove a pin that `pin` added.

        Raises `Refused` for a pin of the option, `NotKnown` for an image that is not pinned, and `StorageError`.
        """
        removed = await self._store.pins.remove(image)
        self._store.update_pinned()
        if image in self._store.pins.configured:
            raise Refused(f"{image} is pinned by the option hubcache_pins; remove it there")
        if not removed:
            raise NotKnown(f"{image} is not pinned")
        message = f"{image} is no longer pinned"
        return {"image": str(image), "pinned": False, "changed": True, "message": message}

    def _is_stored(self, image: ImageName) -> bool:
        """Whether the image's manifest is stored; its blobs may be missing."""
        return any(self._store.has(root) for root in self._store.tags.digests(image))
