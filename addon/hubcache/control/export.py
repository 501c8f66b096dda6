"""Describes what an export of an image contains: all that a client needs to pull it, with its referrers."""

from collections.abc import Collection, Iterator
from typing import Any

from ..oci.digest import Digest
from ..oci.image_name import ImageName
from ..oci.json_reader import read_json
from ..oci.manifest import MAX_MANIFEST
from ..oci.media import media_type_of
from ..oci.reference import fallback_tag
from .errors import NotKnown, Refused
from .image_tree import COSIGN_SUFFIXES, NEGOTIATION
from .parts import Parts
from .platforms import parse_platforms, platform_name
from .stored_tree import StoredTree, read_stored_tree

_IMAGE_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_FETCH = "fetch it with hubcache warm"


class Export:
    """Describes exports. Only public images are exported: an import makes an image readable by everybody."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._prefetch = parts.prefetch

    def describe(self, image: ImageName, platforms: Collection[str] | None) -> dict[str, Any]:
        """Return the content of an image for these platforms; for None, of all that are completely stored.

        Raises `NotKnown` for an image that is not stored or incomplete, and `Refused` for a private one.
        """
        wanted = parse_platforms(platforms)
        root = self._root(image)
        tree = read_stored_tree(self._store, self._prefetch, root, wanted)
        if tree.missing == [root] and wanted:
            raise NotKnown(f"{image} has nothing for {', '.join(sorted(map(platform_name, wanted)))}; {_FETCH}")
        if tree.missing:
            raise NotKnown(
                f"{image} is not completely stored: {len(tree.missing)} of its parts are missing, such as "
                f"{tree.missing[0]}; {_FETCH}"
            )
        referrers = dict(self._referrers(image, tree))
        for digest in referrers:
            part = read_stored_tree(self._store, self._prefetch, digest, None)
            tree.manifests |= part.manifests
            tree.blobs |= part.blobs
        self._check_public(image, tree)
        return {
            "image": str(image),
            "digest": root,
            "platforms": sorted(map(platform_name, tree.platforms)),
            "blobs": [{"digest": digest, "size": size} for digest, size in tree.blobs.items()],
            "manifests": [
                {"digest": digest, "size": size, "media_type": self._media_type(image.host, digest)}
                for digest, size in tree.manifests.items()
            ],
            "referrers": [{"digest": digest, "tag": tag} for digest, tag in referrers.items()],
            "parts": {
                platform_name(platform): self._parts(digest)
                for platform, digest in (tree.platforms or {"": root}).items()
            },
        }

    def _parts(self, digest: Digest) -> list[Digest]:
        """Return the config and the layers of an image manifest, in order, as an archive for docker names them; none of
        an artifact."""
        record = self._store.manifest(digest)
        document = None if record is None else read_json(record.body, MAX_MANIFEST)
        config = document.get("config") if isinstance(document, dict) else None
        if not isinstance(config, dict) or config.get("mediaType") not in _IMAGE_CONFIGS:
            return []
        return [child.digest for child in self._prefetch.children(digest) or () if not child.is_manifest]

    def _root(self, image: ImageName) -> Digest:
        digest: Digest | None
        if isinstance(image.reference, Digest):
            digest = image.reference
        else:
            records = self._store.tags.get(image.host, image.repository, image.reference)
            latest = max(records.values(), key=lambda record: record.validated_at, default=None)
            record = records.get(NEGOTIATION, latest)
            digest = None if record is None else record.digest
        if digest is None or not self._store.is_manifest(digest):
            raise NotKnown(f"{image} is not stored; {_FETCH}")
        return digest

    def _referrers(self, image: ImageName, tree: StoredTree) -> Iterator[tuple[Digest, str | None]]:
        """Return the completely stored referrers of an image's manifests; with their tags, where cosign uses one."""
        host, repository, tags = image.host, image.repository, self._store.tags
        for subject in tuple(tree.manifests):
            listings = {record.digest for record in tags.referrers(host, repository, subject).values()}
            listings |= {record.digest for record in tags.get(host, repository, fallback_tag(subject)).values()}
            for listing in listings - {None}:
                for child in self._prefetch.children(listing) or () if listing is not None else ():
                    if child.is_manifest and self._is_complete(child.digest):
                        yield child.digest, None
            for suffix in COSIGN_SUFFIXES:
                tag = f"{subject.algorithm}-{subject.hex}{suffix}"
                for record in tags.get(host, repository, tag).values():
                    if self._is_complete(record.digest):
                        yield record.digest, tag

    def _is_complete(self, digest: Digest) -> bool:
        return not read_stored_tree(self._store, self._prefetch, digest, None).missing

    def _check_public(self, image: ImageName, tree: StoredTree) -> None:
        visibility = self._store.registries.visibility(image.host, image.repository)
        is_public = visibility is not None and visibility.public
        if not is_public or any(self._store.private.has(digest) for digest in (*tree.manifests, *tree.blobs)):
            raise Refused(f"{image} is private: an import would make it readable by everybody")

    def _media_type(self, host: str, digest: Digest) -> str:
        record = self._store.manifest(digest)
        if record is None:
            raise NotKnown(f"{digest} is no longer stored")
        return media_type_of(record.body) or self._store.registries.media_type(host, digest) or record.media_type
