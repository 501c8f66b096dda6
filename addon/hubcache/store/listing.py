"""Lists tags, manifests and their repositories from the rows of the index.

Each function reads with a connection of its own, in any thread: a list of 100,000 rows would block the event loop. They
raise `StorageError` when the index cannot be read. Rows that are damaged are left out.
"""

from collections.abc import Container, Iterator

from ..decide.records import Link, ManifestRecord, ReferrersRecord, TagRecord, decode_referrers, decode_tags
from ..oci.digest import Digest
from ..oci.errors import RegistryError
from ..oci.image_name import ImageName
from .fact_rows import decode_or
from .index import Index


def list_tags(index: Index) -> dict[ImageName, dict[str, TagRecord]]:
    """Return the records of all tags, by content negotiation."""
    found = {}
    for key, value, _, _ in index.rows("tag/"):
        registry, _, name = key.removeprefix("tag/").partition("/")
        repository, _, tag = name.rpartition(":")
        records = decode_or(decode_tags, value, {})
        if records:
            found[ImageName(registry, repository, tag)] = records
    return found


def list_manifests(index: Index, digest: Digest | str = "") -> Iterator[tuple[Digest, bytes]]:
    """Return the digest and the bytes, which are not verified, of all stored manifests, or of one."""
    for key, value, _, _ in index.rows(f"manifest/{digest}"):
        try:
            yield Digest.parse(key.removeprefix("manifest/")), ManifestRecord.decode(value).body
        except (RegistryError, ValueError, TypeError, AttributeError):
            continue


def list_repositories(index: Index, digests: Container[str]) -> dict[str, dict[tuple[str, str], Link]]:
    """Return the repositories (registry and name) to which these digests belong, by digest."""
    found: dict[str, dict[tuple[str, str], Link]] = {}
    for key, value, _, _ in index.rows("link/"):
        name, _, digest = key.removeprefix("link/").rpartition("@")
        link = decode_or(Link.decode, value, None) if digest in digests else None
        if link is not None:
            registry, _, repository = name.partition("/")
            found.setdefault(digest, {})[registry, repository] = link
    return found


def list_confirmed(index: Index, registry: str, repository: str) -> set[Digest]:
    """Return the digests that a registry confirmed to belong to a repository."""
    prefix = f"link/{registry}/{repository}@"
    found = set()
    for key, value, _, _ in index.rows(prefix):
        link = decode_or(Link.decode, value, None)
        if link is not None and link.confirmed:
            found.add(Digest(key.removeprefix(prefix)))
    return found


def list_private(index: Index) -> frozenset[str]:
    """Return the digests of private content."""
    return frozenset(key.removeprefix("private/") for key, _, _, _ in index.rows("private/"))


def list_referrers(index: Index) -> dict[tuple[str, str, str], dict[str, ReferrersRecord]]:
    """Return the stored answers about referrers, by registry, repository and the digest that they are about."""
    found = {}
    for key, value, _, _ in index.rows("referrers/"):
        name, _, subject = key.removeprefix("referrers/").rpartition("@")
        registry, _, repository = name.partition("/")
        found[registry, repository, subject] = decode_or(decode_referrers, value, dict[str, ReferrersRecord]())
    return found


def list_damaged(index: Index) -> dict[Digest, bool]:
    """Return the digests of content that was damaged or missing, and whether each is a manifest. Content may have been
    stored again since."""
    found = {}
    for key, value, _, _ in index.rows("damaged/"):
        digest = key.removeprefix("damaged/")
        try:
            found[Digest.parse(digest)] = value == "manifest"
        except RegistryError:
            continue
    return found
