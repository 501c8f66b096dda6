"""Decides what the removal of an image or of content removes, from the rows of the index, in a thread."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from ..decide.records import ReferrersRecord, TagRecord
from ..oci.digest import Digest
from ..oci.image_name import ImageName
from ..oci.reference import subject_of_tag
from ..store.index import Index
from ..store.listing import list_referrers, list_tags
from ..store.usage import closure


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be removed: the image `name`, or with None the content `only` in all repositories.

    `only` is content that is removed even if other content refers to it, since it was named by its digest. `pinned` is
    the content of pinned images, which stays.
    """

    name: ImageName | None
    roots: frozenset[Digest]
    only: Digest | None
    pinned: frozenset[Digest]


@dataclass(frozen=True, slots=True)
class Plan:
    """The digests to remove, manifests first; those that are `used` by other images and stay; the tags to forget; and
    the manifests whose referrers are to be forgotten, with registry and repository."""

    removed: tuple[Digest, ...] = ()
    used: tuple[Digest, ...] = ()
    tags: tuple[ImageName, ...] = ()
    subjects: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored at one moment: which content, and what each manifest refers to."""

    index: Index
    content: Set[Digest]
    children: Mapping[Digest, tuple[Digest, ...]]


def plan_purge(stored: Stored, target: Target) -> Plan:
    """Return what is to be removed: the content of the target with its referrers (signatures, attestations), except
    what another tag, a pinned image, or a stored manifest that is not a part of the target refers to.

    Raises `StorageError`.
    """
    tags = list_tags(stored.index)
    listings = list_referrers(stored.index)
    referrers = _by_subject(tags, listings)
    content = closure(stored.children, target.roots, referrers)
    forgotten = {name for name, records in tags.items() if _is_forgotten(target, name, records, content)}
    users = set(target.pinned)
    for name, records in tags.items():
        if name not in forgotten:
            users.update(record.digest for record in records.values())
    for digest, below in stored.children.items():
        if digest not in content:
            users.update(below)
    used = closure(_without(stored.children, target.only), (users & content) - {target.only}, referrers)
    own = [digest for digest in content if digest in stored.content]
    removed = [digest for digest in own if digest not in used or digest == target.only]
    return Plan(
        tuple(sorted(removed, key=lambda digest: digest not in stored.children)),
        tuple(digest for digest in own if digest in used and digest != target.only),
        tuple(name for name in forgotten if _subject(name) is None or _subject(name) not in used),
        tuple(key for key in listings if key[2] in content and key[2] not in used),
    )


def _by_subject(
    tags: Mapping[ImageName, Mapping[str, TagRecord]],
    listings: Mapping[tuple[str, str, str], Mapping[str, ReferrersRecord]],
) -> dict[Digest, set[Digest]]:
    """Return the listings of referrers, and the manifests at tags made from a digest, by subject."""
    found: dict[Digest, set[Digest]] = {}
    for (_, _, subject), answers in listings.items():
        digests = {record.digest for record in answers.values() if record.digest is not None}
        found.setdefault(Digest(subject), set()).update(digests)
    for name, records in tags.items():
        subject_digest = _subject(name)
        if subject_digest is not None:
            found.setdefault(subject_digest, set()).update(record.digest for record in records.values())
    return found


def _is_forgotten(target: Target, name: ImageName, records: Mapping[str, TagRecord], content: Set[Digest]) -> bool:
    """Whether a tag is a part of the target: its own, one that refers to the named digest, or one made from a digest
    of its content."""
    if name == target.name or _subject(name) in content:
        return True
    return target.only is not None and any(record.digest == target.only for record in records.values())


def _without(
    children: Mapping[Digest, tuple[Digest, ...]], digest: Digest | None
) -> Mapping[Digest, tuple[Digest, ...]]:
    return {key: below for key, below in children.items() if key != digest}


def _subject(name: ImageName) -> Digest | None:
    return None if isinstance(name.reference, Digest) else subject_of_tag(name.reference)
