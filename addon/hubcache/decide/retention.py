"""Which images to give up when room is needed: whole images, the least popular first. Pure; `now` is an argument.

An image is a root manifest (one that no other stored manifest refers to) with everything below it. What another
stored image also needs stays. Content that no stored manifest refers to goes before any image.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Set

from ..oci.digest import Digest
from .records import Popularity

HALF_LIFE = 7 * 86400.0
"""Seconds after which a request counts half."""


def decayed(popularity: Popularity | None, now: float, half_life: float = HALF_LIFE) -> float:
    """The popularity at `now`; a clock that went back does not make anything more popular."""
    if popularity is None:
        return 0.0
    return float(popularity.count * 2.0 ** (-max(0.0, now - popularity.last) / half_life))


def requested(popularity: Popularity | None, now: float) -> Popularity:
    """The popularity after one more request."""
    return Popularity(decayed(popularity, now) + 1.0, now)


def victims(
    contents: Set[Digest],
    children: Mapping[Digest, tuple[Digest, ...]],
    parents: Mapping[Digest, Set[Digest]],
    popularity: Mapping[Digest, Popularity],
    now: float,
    keep: Callable[[Digest], bool],
) -> Iterator[Digest]:
    """Digests in the order in which they should be removed; the caller stops when it has room.

    `contents` is all that is stored, `children` what each stored manifest refers to, `parents` its inverse,
    `keep` tells what must not go now (it is being sent). A manifest is given before what it needs, so that stopping
    half-way leaves content without a manifest (harmless) rather than a manifest without content.
    """

    def score(digest: Digest) -> tuple[float, float]:
        known = popularity.get(digest)
        return decayed(known, now), known.last if known else 0.0

    roots = [digest for digest in contents if not parents.get(digest)]
    loose = sorted((digest for digest in roots if digest not in children), key=score)
    yield from (digest for digest in loose if not keep(digest))
    images = [(score(digest), digest) for digest in roots if digest in children]
    heapq.heapify(images)
    gone: set[Digest] = set()
    while images:
        _, root = heapq.heappop(images)
        pending = [root]
        while pending:
            digest = pending.pop()
            if digest in gone or digest not in contents or keep(digest):
                continue
            if digest is not root and not parents.get(digest, frozenset()) <= gone:
                continue
            gone.add(digest)
            pending.extend(reversed(children.get(digest, ())))  # before the caller removes it, and forgets its children
            yield digest
