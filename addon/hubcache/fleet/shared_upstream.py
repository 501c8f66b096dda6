"""A registry as one node of a fleet reaches it: what another node has just read is not requested again.

Only what every client may read is shared. Reads of a client's private content go to the registry with the client's own
credentials, and leave nothing in the bucket.
"""

import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Protocol

from ..oci.account import Account
from ..oci.digest import Digest
from ..oci.errors import BadUpstream, BlobUnknown, Denied, ManifestUnknown, TooManyRequests, Unauthorized, Unavailable
from ..oci.registry import Registry
from ..transfer.blob_body import BlobBody, BlobDownload
from ..transfer.challenge import Challenge
from ..transfer.tokens import Tokens
from ..transfer.upstream import ManifestHead, Upstream
from ..transfer.upstream_client import UpstreamClient
from ..transfer.upstream_response import FetchedManifest
from .answer_objects import Version
from .answer_records import CONTENT_ERRORS
from .blob_read import BlobRead
from .bucket import BucketUnavailable
from .shared_answers import Question, Write
from .shared_manifests import ManifestLookup
from .shared_tags import TagLookup
from .sharing import Sharing

_MAX_ACCEPT = 255
"""Characters of an `Accept` header whose answers are shared. That of nearly all clients has 201, see
`normalize_accept`."""

_KNOWN_CODES = ("MANIFEST_UNKNOWN", "BLOB_UNKNOWN")
"""Codes with which a registry says that the repository can be read."""


class Blobs(Protocol):
    """Reads blobs, from other nodes where they have them."""

    def download(self, read: BlobRead, start: int = 0) -> AbstractAsyncContextManager[BlobDownload]:
        """Open a blob from byte `start` for a fill."""

    def open(self, read: BlobRead, start: int = 0, end: int | None = None) -> AbstractAsyncContextManager[BlobBody]:
        """Open a blob from byte `start` to before `end`, for an answer that is not stored."""


class SharedUpstream(Upstream):
    """An `Upstream` whose anonymous reads are answered by what the registry has answered to any node of the fleet."""

    def __init__(
        self,
        registry: Registry,
        client: UpstreamClient,
        tokens: Tokens,
        learned: Callable[[Registry, Challenge], None],
        account: Account | None,
        sharing: Sharing,
        blobs: Blobs,
    ) -> None:
        super().__init__(registry, client, tokens, learned, account)
        self._sharing = sharing
        self._blobs = blobs

    def _anonymous_pause_began(self, kind: str, seconds: float) -> None:
        self._sharing.pause_began(self.registry.host, kind, seconds)

    # -- manifests ----------------------------------------------------------------------------------------------------

    async def head_manifest(
        self,
        repository: str,
        reference: str | Digest,
        accept: str,
        authorization: str | None = None,
        *,
        not_before: float = -math.inf,
    ) -> ManifestHead:
        """As `Upstream.head_manifest`, or the answer to another node."""
        if authorization is not None:
            return await super().head_manifest(repository, reference, accept, authorization)
        if isinstance(reference, Digest):
            return await self._head_by_digest(repository, reference, accept)
        if len(accept) > _MAX_ACCEPT:
            with self._recording_refusals(repository, has_details=False):
                return await self._head(repository, reference, accept)
        lookup = self._tag(repository, reference, accept, not_before)

        async def ask(version: Version) -> tuple[ManifestHead, Sequence[Write]]:
            head = await self._head(repository, reference, accept)
            return head, lookup.writes(version, head)

        question = Question(lookup.key, lookup.lease, lookup.find, ask, lookup.writes_of_error)
        return await self._answer(
            repository, question, lookup.find_stale, with_lease=self._shares_tags, has_details=False
        )

    async def _head_by_digest(self, repository: str, digest: Digest, accept: str) -> ManifestHead:
        lookup = self._manifest(repository, digest)

        def described(fetched: FetchedManifest | None) -> ManifestHead | None:
            return None if fetched is None else _head_of(fetched)

        async def ask(version: Version) -> tuple[ManifestHead, Sequence[Write]]:
            head = await self._head(repository, digest, accept)
            known = lookup.find_bytes(version, head.answered_at)
            return head, () if known is None else lookup.writes(version, known, is_anonymous=True)

        question = Question(
            *(lookup.key, lookup.lease, lambda version: described(lookup.find(version)), ask, lookup.writes_of_error)
        )
        return await self._answer(
            repository,
            question,
            lambda version: described(lookup.find_stale(version)),
            with_lease=False,
            has_details=False,
        )

    async def get_manifest(
        self,
        repository: str,
        reference: str | Digest,
        accept: str,
        authorization: str | None = None,
        *,
        is_public: bool = False,
    ) -> FetchedManifest:
        """As `Upstream.get_manifest`, or what another node has fetched."""
        if isinstance(reference, Digest) and (is_public or authorization is None):
            return await self._get_by_digest(
                repository, reference, accept, authorization, is_confirmed=authorization is not None
            )
        if isinstance(reference, Digest) or authorization is not None:
            return await super().get_manifest(repository, reference, accept, authorization, is_public=is_public)
        if len(accept) > _MAX_ACCEPT:
            with self._recording_refusals(repository):
                return await self._get(repository, reference, accept)
        return await self._get_by_tag(repository, reference, accept)

    async def _get_by_tag(self, repository: str, tag: str, accept: str) -> FetchedManifest:
        lookup = self._tag(repository, tag, accept)
        fetched: FetchedManifest | None = None

        async def ask(version: Version) -> tuple[ManifestHead, Sequence[Write]]:
            nonlocal fetched
            if lookup.has_answer(version):  # a GET counts as a pull, a HEAD does not
                head = await self._head_if_accepted(repository, tag, accept)
                if head is not None and head.digest is not None and head.size is not None:
                    return head, lookup.writes(version, head)
            fetched = await self._get(repository, tag, accept)
            body = self._manifest(repository, fetched.digest).writes(None, fetched, is_anonymous=True)
            return _head_of(fetched), (*body, *lookup.writes(version, _head_of(fetched)))

        question = Question(lookup.key, lookup.lease, lookup.find, ask, lookup.writes_of_error)
        head = await self._answer(repository, question, lookup.find_stale, with_lease=self._shares_tags)
        if fetched is not None:
            return fetched
        assert head.digest is not None
        try:
            found = await self._get_by_digest(repository, head.digest, accept, None, is_confirmed=True)
        except ManifestUnknown:  # the tag has moved, and the registry has removed what it referred to
            return await self._get(repository, tag, accept)
        return FetchedManifest(found.digest, head.media_type, found.body, head.answered_at)

    async def _get_by_digest(
        self, repository: str, digest: Digest, accept: str, authorization: str | None, *, is_confirmed: bool
    ) -> FetchedManifest:
        """Return a manifest; `is_confirmed`: the registry has just shown that every client may read it."""
        lookup = self._manifest(repository, digest, is_confirmed=is_confirmed)
        is_anonymous = authorization is None

        async def ask(version: Version) -> tuple[FetchedManifest, Sequence[Write]]:
            head = None
            if lookup.has_answer(version):  # the bytes are known, but not whether every client may read them now
                head = await self._head_if_accepted(repository, digest, accept)
            fetched = None if head is None else lookup.find_bytes(version, head.answered_at)
            if fetched is None:
                fetched = await self._get(repository, digest, accept, authorization)
            return fetched, lookup.writes(version, fetched, is_anonymous=is_anonymous)

        question = Question(
            *(lookup.key, lookup.lease, lambda version: self._find_and_follow(lookup, version), ask),
            lookup.writes_of_error if is_anonymous else lambda _, __: (),
            is_immutable=True,
        )
        return await self._answer(repository, question, lookup.find_stale, authorization)

    def _find_and_follow(self, lookup: ManifestLookup, version: Version) -> FetchedManifest | None:
        """Return a manifest in the bucket, and record which node has fetched it: that one is asked for the blobs."""
        found = lookup.find(version)
        if found is not None:
            age = self._wall_clock() - found.answered_at
            self._sharing.leaders.record(lookup.host, lookup.repository, lookup.node(version), age)
        return found

    # -- blobs ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open_blob(
        self,
        repository: str,
        digest: Digest,
        start: int = 0,
        end: int | None = None,
        authorization: str | None = None,
        *,
        is_public: bool = False,
    ) -> AsyncIterator[BlobBody]:
        """As `Upstream.open_blob`, from the bucket where it has the blob."""
        read = self._blob_read(repository, digest, authorization, is_public)
        opened = read.open(start, end) if _is_check(authorization, is_public) else self._blobs.open(read, start, end)
        with self._recording_refusals(repository) if authorization is None else nullcontext():
            async with opened as body:
                yield body

    @asynccontextmanager
    async def download_blob(
        self,
        repository: str,
        digest: Digest,
        start: int = 0,
        authorization: str | None = None,
        *,
        is_public: bool = False,
    ) -> AsyncIterator[BlobDownload]:
        """As `Upstream.download_blob`, from the bucket or the node that fetches the blob."""
        read = self._blob_read(repository, digest, authorization, is_public)
        opened = read.download(start) if _is_check(authorization, is_public) else self._blobs.download(read, start)
        with self._recording_refusals(repository) if authorization is None else nullcontext():
            async with opened as body:
                yield body

    def _blob_read(self, repository: str, digest: Digest, authorization: str | None, is_public: bool) -> BlobRead:
        checked_with = None if is_public else authorization
        return BlobRead(
            *(self.registry.host, repository, digest, is_public, checked_with),
            lambda: Upstream.head_blob(self, repository, digest, checked_with),
            lambda start: Upstream.download_blob(self, repository, digest, start, authorization),
            lambda start, end: Upstream.open_blob(self, repository, digest, start, end, authorization),
        )

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _answer[Answer](
        self,
        repository: str,
        question: Question[Answer],
        find_stale: Callable[[Version], Answer | None],
        authorization: str | None = None,
        *,
        with_lease: bool = True,
        has_details: bool = True,
    ) -> Answer:
        """Return the fleet's or the registry's answer; while the registry does not answer, an old one of the fleet.

        `has_details`: the answer is that to a GET, whose errors have a body.
        """
        is_available = self.is_reachable and not self.is_rate_limited("manifest", authorization or "")

        def may_lease(version: Version) -> bool:
            return with_lease and is_available and (bool(version.fields) or self._sharing.may_fail())

        try:
            with self._recording_refusals(repository, has_details) if authorization is None else nullcontext():
                return await self._sharing.answers.answer(question, may_lease)
        except (Unavailable, TooManyRequests, BadUpstream):
            stale = None
            with suppress(BucketUnavailable):
                stale = find_stale(await self._sharing.answers.read(question.key))
            if stale is None:
                raise
            return stale

    @contextmanager
    def _recording_refusals(self, repository: str, has_details: bool = True) -> Iterator[None]:
        """Record a refusal of an anonymous read: earlier answers do not show any more that every client may read.

        Some registries answer 404 instead, see `Access.expire_visibility`. Without details it is not known whether the
        repository or the manifest is missing; then `serve` sends a GET, too.
        """
        try:
            yield
        except (Unauthorized, Denied, ManifestUnknown, BlobUnknown) as error:
            detail = error.detail if isinstance(error.detail, dict) else {}
            code = detail.get("upstream_code")
            is_hidden = code not in _KNOWN_CODES and (has_details or code is not None)
            if is_hidden or isinstance(error, Unauthorized | Denied):
                at = self._wall_clock() if error.answered_at is None else error.answered_at
                self._sharing.record_refusal(self.registry.host, repository, at)
            raise

    @property
    def _shares_tags(self) -> bool:
        return self._sharing.lifetimes.tag > 0

    def _tag(self, repository: str, tag: str, accept: str, not_before: float = -math.inf) -> TagLookup:
        host, clock = self.registry.host, self._wall_clock
        return TagLookup(self._sharing, host, repository, tag, accept, clock, clock(), not_before)

    def _manifest(self, repository: str, digest: Digest, *, is_confirmed: bool = False) -> ManifestLookup:
        host, clock = self.registry.host, self._wall_clock
        return ManifestLookup(self._sharing, host, repository, digest, clock, clock(), is_confirmed)

    # -- requests to the registry -------------------------------------------------------------------------------------

    async def _head(self, repository: str, reference: str | Digest, accept: str) -> ManifestHead:
        return await super().head_manifest(repository, reference, accept)

    async def _head_if_accepted(self, repository: str, reference: str | Digest, accept: str) -> ManifestHead | None:
        """As `_head`, but None for an error that the registry answered: a GET returns more details."""
        with suppress(*CONTENT_ERRORS):
            return await self._head(repository, reference, accept)
        return None

    async def _get(
        self, repository: str, reference: str | Digest, accept: str, authorization: str | None = None
    ) -> FetchedManifest:
        fetched = await super().get_manifest(repository, reference, accept, authorization)
        self._sharing.leaders.record(self.registry.host, repository, self._sharing.node, age=0.0)
        return fetched


def _is_check(authorization: str | None, is_public: bool) -> bool:
    """Whether a read finds out if the public may read a blob: an answer of another node would not show that."""
    return authorization is None and not is_public


def _head_of(fetched: FetchedManifest) -> ManifestHead:
    return ManifestHead(fetched.digest, fetched.media_type, len(fetched.body), fetched.answered_at)
