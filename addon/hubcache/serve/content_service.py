"""Answers reads of manifests, blobs and referrers for one view of a repository, and counts them."""

from contextlib import AsyncExitStack

from ..oci.digest import Digest
from ..oci.media import normalize_accept
from ..oci.reference import BlobTarget, ManifestTarget, ReferrersTarget, parse_target, referrers_query, subject_of_tag
from ..store.store import Store
from ..transfer.sources import FileSource
from .answers import blob_answer, etag, manifest_answer, referrers_answer
from .cached_blobs import BlobResult, CachedBlobs
from .cached_manifests import CachedManifests
from .cached_referrers import CachedReferrers
from .layers_ahead import LayersAhead
from .messages import Answer, Listener, Request
from .pull_counting import PullCounter
from .repeated_downloads import RepeatedDownloads
from .repository_view import RepositoryView
from .stored_only_mirror import StoredOnlyMirror
from .tag_refresh import TagRefresh

type ContentTarget = ManifestTarget | BlobTarget | ReferrersTarget


class ContentService:
    """Answers reads of content. With `stored_only`, a mirror answers 404 for an image that is not completely stored.

    Methods raise `RegistryError`.
    """

    def __init__(
        self,
        store: Store,
        manifests: CachedManifests,
        blobs: CachedBlobs,
        referrers: CachedReferrers,
        tag_refresh: TagRefresh,
        mirror: StoredOnlyMirror,
        layers_ahead: LayersAhead,
    ) -> None:
        self.stored_only = False
        self._store = store
        self._manifests = manifests
        self._blobs = blobs
        self._referrers = referrers
        self._tag_refresh = tag_refresh
        self._mirror = mirror
        self._layers_ahead = layers_ahead
        self._pulls = PullCounter()
        self._repeated_downloads = RepeatedDownloads()

    async def answer(self, request: Request, view: RepositoryView, target: ContentTarget) -> Answer:
        """Return the answer to a GET or HEAD."""
        stored_only = self._is_stored_only(request)
        if isinstance(target, ReferrersTarget):
            return await self._referrers_page(request, view, target, stored_only)
        if isinstance(target, BlobTarget):
            return await (self._stored_blob if stored_only else self._blob)(request, view, target)
        return await (self._stored_manifest if stored_only else self._manifest)(request, view, target)

    def _is_stored_only(self, request: Request) -> bool:
        return request.listener is Listener.MIRROR and self.stored_only

    def count_repeats(self, request: Request, answer: Answer, count: int) -> None:
        """Count `count` repetitions of an answer for a client as `answer` counts requests. Of the headers of the
        request, only `Accept` is used."""
        if answer.content is None:
            return
        self._count(request, answer.content)
        target = parse_target(request.path) if answer.kind == "manifest" else None
        if not isinstance(target, ManifestTarget):
            return
        host, stored_only = request.registry.host, self._is_stored_only(request)
        if request.method == "GET" and not stored_only:
            self._layers_ahead.manifest_sent(request.client, host, target.repository, answer.content)
        if isinstance(target.reference, Digest) or (stored_only and subject_of_tag(target.reference) is not None):
            return
        accept = normalize_accept(request.headers.get("accept"))
        for _ in range(count):
            self._tag_refresh.record_hit(host, target.repository, target.reference, accept)

    def _count(self, request: Request, digest: Digest) -> None:
        if self._pulls.is_new_pull(request.client, digest):
            self._store.popularity.count_request(digest)

    # -- manifests and referrers ----------------------------------------------------------------------------------

    async def _manifest(self, request: Request, view: RepositoryView, target: ManifestTarget) -> Answer:
        head = request.method == "HEAD"
        if isinstance(target.reference, Digest):
            found = await self._manifests.by_digest(view, target.reference, head=head)
        else:
            accept = normalize_accept(request.headers.get("accept"))
            if subject_of_tag(target.reference) is None:
                found = await self._manifests.by_tag(view, target.reference, accept, head=head)
            else:
                found = await self._referrers.by_fallback_tag(view, target.reference, accept, head=head)
            if view.authorization is None:
                self._tag_refresh.record_request(view, target.reference, accept, found)
        self._count(request, found.digest)
        if not head and view.authorization is None:
            self._layers_ahead.manifest_sent(request.client, view.host, view.repository, found.digest)
        return manifest_answer(request, found)

    async def _stored_manifest(self, request: Request, view: RepositoryView, target: ManifestTarget) -> Answer:
        head = request.method == "HEAD"
        accept = normalize_accept(request.headers.get("accept"))
        if not isinstance(target.reference, Digest) and subject_of_tag(target.reference) is not None:
            found = await self._referrers.by_fallback_tag(view, target.reference, accept, head=head, known_only=True)
            self._count(request, found.digest)
            return manifest_answer(request, found)
        client = (request.client, request.headers.get("user-agent", ""))
        found = await self._mirror.manifest(view, target.reference, accept, client, head=head)
        self._count(request, found.digest)
        if not isinstance(target.reference, Digest):
            self._tag_refresh.record_request(view, target.reference, accept, found)
        return manifest_answer(request, found)

    async def _referrers_page(
        self, request: Request, view: RepositoryView, target: ReferrersTarget, stored_only: bool
    ) -> Answer:
        query = referrers_query(request.query)
        found = await self._referrers.by_subject(view, target.digest, query, known_only=stored_only)
        self._count(request, found.digest)
        return referrers_answer(request, target, found)

    # -- blobs ----------------------------------------------------------------------------------------------------

    async def _blob(self, request: Request, view: RepositoryView, target: BlobTarget) -> Answer:
        range_header = None
        if request.method == "HEAD":
            blob = await self._blobs.head(view, target.digest)
        else:
            condition = request.headers.get("if-range")  # RFC 9110 section 13.1.5
            usable = condition is None or condition == etag(target.digest)
            range_header = request.headers.get("range") if usable else None
            self._count(request, target.digest)
            self._suspect_repeat(request, target.digest)
            blob = await self._blobs.get(view, target.digest, range_header, bypass_store=request.bypass_store)
            if self._layers_ahead.was_fetched_for(view, target.digest):
                blob.describe_as_fetched()
        answer = await self._blob_answer(request, target.digest, blob, is_counted=request.method != "HEAD")
        if request.method != "HEAD" and range_header is None:
            # A client that requests ranges (stargz, SOCI) may want few of the layers.
            async with AsyncExitStack() as stack:
                if answer.source is not None:
                    stack.push_async_callback(answer.source.close)  # where the manifests cannot be read
                self._layers_ahead.blob_requested(view, target.digest, answer.source)
                stack.pop_all()
        return answer

    async def _stored_blob(self, request: Request, view: RepositoryView, target: BlobTarget) -> Answer:
        self._suspect_repeat(request, target.digest)
        head = request.method == "HEAD"
        blob = await self._mirror.blob(view, target.digest, request.headers.get("range"), head=head)
        self._count(request, target.digest)
        return await self._blob_answer(request, target.digest, blob, is_counted=True)

    def _suspect_repeat(self, request: Request, digest: Digest) -> None:
        """Have a stored blob verified before all of it is sent to a client that has just received it."""
        is_whole = request.method == "GET" and "range" not in request.headers
        if is_whole and self._repeated_downloads.is_repeat(request, digest):
            self._store.inspector.suspect(digest)

    async def _blob_answer(self, request: Request, digest: Digest, blob: BlobResult, *, is_counted: bool) -> Answer:
        answer = blob_answer(request, digest, blob)
        answer.content = digest if is_counted else None
        if blob.source is not None and answer.source is None:
            await blob.source.close()
        if answer.status == 200 and isinstance(blob.source, FileSource):
            blob.source.on_close = lambda: self._repeated_downloads.record_sent(request, digest)
        return answer
