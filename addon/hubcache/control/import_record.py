"""Records an imported image, whose content is stored already, as if its registry had delivered it."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from ..decide.records import ManifestRecord, TagRecord
from ..oci.digest import Digest
from ..oci.errors import StorageError
from ..oci.image_name import ImageName, short_name
from ..oci.json_reader import read_json
from ..oci.manifest import MAX_MANIFEST
from ..oci.media import media_type_of
from ..serve.repository_view import RepositoryView
from ..store.listing import list_confirmed
from .errors import InvalidCommand, NotKnown, Refused
from .image_tree import NEGOTIATION
from .parts import Parts
from .platforms import platform_name
from .registries import NotServed, upstream_of
from .stored_tree import StoredTree, read_stored_tree


class ImportRecord:
    """Records imported images.

    The operator vouches for an image by importing it: it counts as a public image of its registry and repository, with
    a tag that was validated at the time of the import. So it is served without the registry, like a fetched one, until
    the tag is older than `hubcache_tag_ttl` and the registry answers.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def record(
        self, image: ImageName, digest: Digest, media_type: str, referrers: Sequence[Digest]
    ) -> dict[str, Any]:
        """Record an image, and manifests that refer to it or to a part of it.

        Raises `InvalidCommand` for a registry that is not cached, `Refused` when content is missing or the repository
        has private content, and `StorageError`. Nothing is recorded before all content is known to be stored, and the
        tag last.
        """
        if isinstance(image.reference, Digest) and image.reference != digest:
            raise InvalidCommand(f"{image} cannot be an image with the digest {digest}")
        try:
            with upstream_of(self._parts.upstreams, image) as upstream:
                view = RepositoryView(upstream, image.repository)
                trees = [self._complete(image, each) for each in (digest, *referrers)]
                listed: dict[Digest, dict[Digest, dict[str, object]]] = {}
                for each in referrers:
                    listed.setdefault(self._subject(each), {})[each] = self._descriptor(each)
                await self._check_not_private(view, trees)
                for tree in trees:
                    await self._record_content(view, tree)
                await self._record_access(view)
                for subject, descriptors in listed.items():
                    await self._parts.referrers.add_listed(view, subject, descriptors)
                await self._record_tag(view, image, digest, media_type)
        except NotServed as error:
            raise InvalidCommand(str(error)) from error
        platforms = sorted(map(platform_name, trees[0].platforms))
        return {"image": str(image), "digest": digest, "platforms": platforms, "referrers": len(referrers)}

    def _complete(self, image: ImageName, digest: Digest) -> StoredTree:
        tree = read_stored_tree(self._parts.store, self._parts.prefetch, digest, None)
        if tree.missing:
            raise Refused(
                f"{image} is not recorded: {len(tree.missing)} of its parts are not stored: {tree.missing[0]}"
            )
        return tree

    async def _check_not_private(self, view: RepositoryView, trees: Sequence[StoredTree]) -> None:
        """Raise `Refused` if the repository has other content that is private: everybody could read it, too."""
        store = self._parts.store
        imported = {digest for tree in trees for digest in (*tree.manifests, *tree.blobs)}
        known = await asyncio.to_thread(list_confirmed, store.index.opened(), view.host, view.repository)
        for digest in known - imported:
            if store.has(digest) and store.private.has(digest):
                name = short_name(view.host, view.repository)
                raise Refused(
                    f"the store has private content of {name}, which everybody could read if {name} became public: "
                    f"purge it first, such as {digest}"
                )

    def _manifest(self, digest: Digest) -> ManifestRecord:
        record = self._parts.store.manifest(digest)
        if record is None:
            raise NotKnown(f"{digest} is not stored")
        return record

    def _subject(self, referrer: Digest) -> Digest:
        """Return the manifest that a referrer is about (OCI image-spec, manifest.md, `subject`)."""
        document = read_json(self._manifest(referrer).body, MAX_MANIFEST)
        subject = document.get("subject") if isinstance(document, dict) else None
        if not isinstance(subject, dict):
            raise InvalidCommand(f"{referrer} has no subject, so that it is no referrer")
        return Digest.parse(str(subject.get("digest")))

    def _descriptor(self, referrer: Digest) -> dict[str, object]:
        """Return the descriptor of a referrer as a registry lists it (distribution spec, "Listing Referrers")."""
        record = self._manifest(referrer)
        document = read_json(record.body, MAX_MANIFEST)
        assert isinstance(document, dict)
        config = document.get("config")
        kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
        descriptor: dict[str, object] = {
            "mediaType": media_type_of(record.body) or record.media_type,
            "digest": referrer,
            "size": len(record.body),
        }
        if isinstance(kind, str):
            descriptor["artifactType"] = kind
        if isinstance(document.get("annotations"), dict):
            descriptor["annotations"] = document["annotations"]
        return descriptor

    async def _record_content(self, view: RepositoryView, tree: StoredTree) -> None:
        """Record that content belongs to the repository, and that its registry gave it; what is absent only belongs."""
        store, host, repository = self._parts.store, view.host, view.repository
        stored: dict[Digest, int | None] = {**tree.manifests, **tree.blobs}
        for digest in stored:
            sources = store.private.sources(digest)
            if sources is not None and host not in sources:
                await store.private.add(digest, host)
        await store.links.put(host, repository, stored, given=True)
        await store.links.put(host, repository, dict(tree.absent), confirmed=False)
        for digest in tree.manifests:
            record = self._manifest(digest)
            if media_type_of(record.body) is None:
                await store.registries.put_media_type(host, digest, record.media_type)

    async def _record_access(self, view: RepositoryView) -> None:
        """Record that the repository is public, as after an anonymous read of it."""
        access = self._parts.access
        access.forget_errors(view.host, view.repository)
        await access.record_accepted(view.host, view.repository, None)
        visibility = self._parts.store.registries.visibility(view.host, view.repository)
        if visibility is None or not visibility.public:  # written with best effort
            raise StorageError(self._parts.store.problem or "the repository could not be recorded as public")

    async def _record_tag(self, view: RepositoryView, image: ImageName, digest: Digest, media_type: str) -> None:
        if isinstance(image.reference, Digest):
            return
        body = self._manifest(digest).body
        record = TagRecord(digest, media_type_of(body) or media_type, len(body), time.time())
        await self._parts.store.tags.put(view.host, view.repository, image.reference, NEGOTIATION, record)
