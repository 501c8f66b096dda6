"""The pinned images, and their content."""

import json
from collections.abc import Iterable, Iterator

from ..oci.digest import Digest
from ..oci.image_name import ImageName
from ..oci.reference import parse_name, parse_reference
from .fact_rows import decode_or
from .index import Index
from .index_access import IndexAccess
from .tag_facts import TagFacts
from .usage import Usage

_PREFIX = "pin/"


class Pins:
    """The images that are never evicted: those of the option `hubcache_pins` (`configured`), and those that were added
    while the program ran, in rows of the index, which survive a restart."""

    def __init__(self, index: IndexAccess) -> None:
        self.configured: tuple[ImageName, ...] = ()
        self._index = index
        self._added: dict[ImageName, None] = {}

    def __iter__(self) -> Iterator[ImageName]:
        """Return each pinned image once."""
        return iter(dict.fromkeys((*self.configured, *self._added)))

    def load(self, index: Index) -> None:
        """Read the rows of an index that is being opened."""
        images = (decode_or(_decode, value, None) for _, value, _, _ in index.rows(_PREFIX))
        self._added = dict.fromkeys(image for image in images if image is not None)

    async def add(self, image: ImageName) -> bool:
        """Pin an image; return whether it was not pinned before. Raises `StorageError`."""
        if image in tuple(self):
            return False
        index = self._index.opened()
        await self._index.write(lambda: index.set(_key(image), _encode(image)))
        self._added[image] = None
        return True

    async def remove(self, image: ImageName) -> bool:
        """Remove a pin that was added; return whether there was one. Raises `StorageError`."""
        if image not in self._added:
            return False
        index = self._index.opened()
        await self._index.write(lambda: index.delete(_key(image)))
        self._added.pop(image, None)
        return True


def pinned_content(pins: Iterable[ImageName], tags: TagFacts, usage: Usage) -> frozenset[Digest]:
    """Return the digests that the pinned images have now, with everything that they refer to and that refers to them
    (signatures, attestations)."""
    pinned: set[Digest] = set()
    for pin in pins:
        pinned |= usage.closure(tags.digests(pin), tags.referrers_by_subject(pin.host, pin.repository))
    return frozenset(pinned)


def _key(image: ImageName) -> str:
    return f"{_PREFIX}{image.host}/{image.repository}@{image.reference}"


def _encode(image: ImageName) -> str:
    return json.dumps([image.host, image.repository, image.reference])


def _decode(text: str) -> ImageName:
    host, repository, reference = json.loads(text)
    return ImageName(str(host), parse_name(repository), parse_reference(reference))
