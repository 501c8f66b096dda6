"""Lists the stored images, and shows one of them in detail."""

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import batched
from typing import Any

from ..oci.digest import Digest
from ..oci.image_name import ImageName
from ..store.store import Store
from .errors import NotKnown
from .image_reading import Image, Snapshot, choose_root, list_images, read_platform, show_image

_SLICE = 500
"""Images that are completed at once on the event loop, which takes some milliseconds."""

_NOT_STORED: dict[str, Any] = {
    **{"digest": None, "platforms": (), "complete_platforms": (), "size": 0, "stored_bytes": 0},
    **{"complete": False, "pinned": True, "private": False},
}


class Images:
    """The stored images: by tag, and by digest where no tag refers to them.

    `tag_lifetime` returns the seconds for which a tag is fresh, `clock` seconds since the epoch.
    """

    def __init__(self, store: Store, tag_lifetime: Callable[[], float], clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._tag_lifetime = tag_lifetime
        self._clock = clock
        self._turn = asyncio.Lock()

    async def list(self) -> list[Image]:
        """Return the images whose manifest is stored, and the pinned ones that are not, in no particular order.

        Raises `StorageError`.
        """
        async with self._turn:  # several at the same time would compete with the event loop for the interpreter
            snapshot = self._snapshot()
            images, configs = await asyncio.to_thread(list_images, snapshot)
            listed = {(image["registry"], image["repository"], image["tag"] or image["digest"]) for image in images}
            for pin in snapshot.pins:
                if (pin.host, pin.repository, str(pin.reference)) not in listed:
                    images.append(_NOT_STORED | _name(pin))
                    configs.append(None)
            for some in batched(zip(images, configs, strict=True), _SLICE):
                await self._complete(some)
        return images

    async def show(self, name: ImageName) -> Image:
        """Return an image with its manifests, blobs and referrers; raises `NotKnown` and `StorageError`."""
        snapshot = self._snapshot()
        if isinstance(name.reference, Digest):
            root, records = name.reference, {}
            link = self._store.links.get(name.host, name.repository, root)
            is_known = link is not None and self._store.is_manifest(root)
        else:
            records = self._store.tags.get(name.host, name.repository, name.reference)
            is_known = bool(records)
            root = choose_root(records, snapshot.sizes) if records else Digest.of(b"")
        if not is_known:
            raise NotKnown(f"{name} is not stored")
        is_private = self._store.private.has(root)
        image, config = await asyncio.to_thread(lambda: show_image(snapshot, name, root, is_private=is_private))
        await self._complete([(image, config)])
        validated = max((record.validated_at for record in records.values() if record.digest == root), default=None)
        fresh_until = None if validated is None else validated + self._tag_lifetime()
        return image | {"validated": validated, "fresh_until": fresh_until}

    def _snapshot(self) -> Snapshot:
        usage, index = self._store.usage, self._store.index.opened()
        return Snapshot(index, dict(usage.sizes), usage.pinned, frozenset(self._store.pins))

    async def _complete(self, images: Iterable[tuple[Image, Digest | None]]) -> None:
        """Add the requests, which the event loop counts, and the platforms of images without an index."""
        retention, now = self._store.capacity.retention, self._clock()
        unread = []
        for image, config in images:
            digest = None if image["digest"] is None else Digest.parse(image["digest"])
            idle = None if digest is None else retention.idle(digest, now)
            image["requests"] = 0.0 if digest is None else round(retention.requests(digest, now), 2)
            image["last_request"] = None if idle is None else now - idle
            path = None if config is None else self._store.blob_path(config)
            if path is not None:
                unread.append((image, path))
        platforms = await asyncio.to_thread(lambda: [read_platform(path) for _, path in unread])
        for (image, _), platform in zip(unread, platforms, strict=True):
            _set_platform(image, platform)


def _name(pin: ImageName) -> Image:
    tag = None if isinstance(pin.reference, Digest) else pin.reference
    return {"name": str(pin), "registry": pin.host, "repository": pin.repository, "tag": tag}


def _set_platform(image: Image, platform: str | None) -> None:
    if platform is None:
        return
    image["platforms"] = [platform]
    image["complete_platforms"] = [platform] if image["complete"] else []
    for manifest in image.get("manifests", ()):
        manifest["platform"] = platform
