"""Finds the content of pinned images."""

from collections.abc import Iterable

from ..oci.digest import Digest
from ..oci.image_name import ImageName
from .tag_facts import TagFacts
from .usage import Usage


def pinned_content(pins: Iterable[ImageName], tags: TagFacts, usage: Usage) -> frozenset[Digest]:
    """Return the digests that the pinned images have now, with everything that they refer to and that refers to them
    (signatures, attestations)."""
    pinned: set[Digest] = set()
    for pin in pins:
        if isinstance(pin.reference, Digest):
            roots = {pin.reference}
        else:
            roots = {record.digest for record in tags.get(pin.host, pin.repository, pin.reference).values()}
        pinned |= usage.closure(roots, tags.referrers_by_subject(pin.host, pin.repository))
    return frozenset(pinned)
