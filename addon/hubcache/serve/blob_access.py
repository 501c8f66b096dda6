"""Finds out whether a view may read a blob, and downloads it with credentials that the registry accepts."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

from cachetools import TTLCache

from ..oci.digest import Digest
from ..oci.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    HeaderInvalid,
    RegistryError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ..store.store import Store
from ..transfer.blob_body import BlobBody, BlobDownload
from ..transfer.coalesce import Coalescer
from ..transfer.fills import OpenBlob
from ..transfer.sources import OpenRange
from .access import Access
from .best_effort import BestEffortWriter
from .cached_manifests import PATIENCE_SECONDS
from .repository_view import RepositoryView

HEADLESS_SECONDS = 3600.0
"""How long no HEAD of a blob is sent to a registry that refused one and accepted the GET."""

_MAX_REGISTRIES = 1000
_REFUSALS = (Unauthorized, Denied, BlobUnknown, TooManyRequests, HeaderInvalid)
"""Errors after which a download is tried with other credentials."""

type _Size = tuple[int | None, float | None]
"""A blob's size in bytes, None if unknown, and when the registry answered, see `BlobBody.answered_at`."""


class BlobAccess:
    """Checks access to blobs by HEAD, or by GET where a registry refuses HEAD (ECR Public: 401 to HEAD, 307 to GET).

    `clock` returns seconds since the epoch.
    """

    def __init__(
        self, store: Store, writer: BestEffortWriter, access: Access, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._writer = writer
        self._access = access
        self._clock = clock
        self._checks = Coalescer[tuple[str, str, str, Digest], _Size]()
        self._headless: TTLCache[str, None] = TTLCache(_MAX_REGISTRIES, HEADLESS_SECONDS, lambda: time.monotonic())

    async def check(self, view: RepositoryView, digest: Digest) -> str | None:
        """Raise unless the view may read a blob of its registry, whether or not another repository has the blob.

        Returns None, or in an outage the reason why the upstream could not be asked.
        """
        if self._access.can_read(view.host, view.repository, digest, view.authorization):
            return None
        has_stale = self._access.can_read(view.host, view.repository, digest, view.authorization, outage=True)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if has_stale else None):
                await self.ask(view, digest)
        except (Unavailable, TooManyRequests, BadUpstream, TimeoutError) as error:
            failure = Unavailable("upstream is slow") if isinstance(error, TimeoutError) else error
            # Checked again, and not taken from `has_stale`: access may have changed meanwhile.
            if not self._access.can_read(view.host, view.repository, digest, view.authorization, outage=True):
                raise failure from error
            return failure.message
        return None

    async def ask(self, view: RepositoryView, digest: Digest) -> int | None:
        """Ask the upstream whether the view may read the blob; return its size in bytes, None if unknown."""
        change_number = self._access.raise_remembered_error(view.host, view.repository, view.request_key(str(digest)))
        try:
            size, answered_at = await self._checks.run((*view.key, digest), lambda: self._request_size(view, digest))
        except (BlobUnknown, Unauthorized, Denied) as error:
            await self.record_refused(view, digest, error, change_number)
            raise
        await self.record_accepted(view, digest, answered_at)
        link = self._store.links.get(view.host, view.repository, digest)
        return size if size is not None or link is None else link.size

    async def _request_size(self, view: RepositoryView, digest: Digest) -> _Size:
        if view.host in self._headless:
            return await self._request_size_by_get(view, digest)
        requested_at = self._clock()
        try:
            return await view.upstream.head_blob(view.repository, digest, view.authorization), requested_at
        except (Unauthorized, Denied, BadUpstream) as error:
            if not _may_refuse_head_only(error):
                raise
        size = await self._request_size_by_get(view, digest)
        self._headless[view.host] = None
        return size

    @staticmethod
    async def _request_size_by_get(view: RepositoryView, digest: Digest) -> _Size:
        """Return the size from the head of a GET's answer; the connection is closed before the body."""
        async with view.upstream.open_blob(view.repository, digest, authorization=view.authorization) as body:
            return body.size, body.answered_at

    async def record_accepted(self, view: RepositoryView, digest: Digest, answered_at: float | None) -> None:
        """Record that the view may read the blob, as the registry answered at `answered_at` (seconds since the epoch).

        Nothing is recorded when it is None: the registry was not asked.
        Its size is not recorded: a HEAD may return a wrong size, with which the blob could not be downloaded.
        """
        if answered_at is None:
            return
        await self._access.record_accepted(view.host, view.repository, view.authorization, answered_at)
        await self._writer.put_links(view.host, view.repository, {digest: None})

    async def record_refused(
        self, view: RepositoryView, digest: Digest, error: RegistryError, change_number: int
    ) -> None:
        """Record a refusal for this view; `change_number` is what `Access.raise_remembered_error` returned before."""
        if isinstance(error, BlobUnknown):
            if view.authorization is None:
                await self._access.expire_visibility(view.host, view.repository, error)
        else:
            await self._access.record_refused(view.host, view.repository, view.authorization)
        if view.authorization is None:  # last: content that becomes private is found by its links
            await self._writer.unlink(view.host, view.repository, digest)
        self._access.remember_error(view.host, view.repository, view.request_key(str(digest)), error, change_number)

    def opener(self, view: RepositoryView, digest: Digest) -> OpenRange:
        """Return a function that opens the blob upstream, with the first credentials that are accepted for it."""

        def open_range(start: int, end: int | None) -> AbstractAsyncContextManager[BlobBody]:
            open_blob = partial(view.upstream.open_blob, is_public=view.authorization is None)
            return self._open(
                view, digest, lambda authorization: open_blob(view.repository, digest, start, end, authorization)
            )

        return open_range

    def downloader(self, view: RepositoryView, digest: Digest) -> OpenBlob:
        """Return a function that opens the blob for a fill, with the first credentials that are accepted for it."""

        def open_blob(start: int) -> AbstractAsyncContextManager[BlobDownload]:
            download = partial(view.upstream.download_blob, is_public=view.authorization is None)
            return self._open(
                view, digest, lambda authorization: download(view.repository, digest, start, authorization)
            )

        return open_blob

    @asynccontextmanager
    async def _open[B](
        self,
        view: RepositoryView,
        digest: Digest,
        open_with: Callable[[str | None], AbstractAsyncContextManager[B]],
    ) -> AsyncIterator[B]:
        async with AsyncExitStack() as stack:

            async def attempt(authorization: str | None) -> B:
                return await stack.enter_async_context(open_with(authorization))

            if await self._may_use_other_credentials(view, digest):
                yield await view.try_credentials(attempt, _REFUSALS)
            else:
                yield await attempt(view.authorization)

    async def _may_use_other_credentials(self, view: RepositoryView, digest: Digest) -> bool:
        """Whether the blob may be downloaded with the client's or the account's credentials instead of the view's.

        They may be used only when the registry confirms that the public may read the blob now, since the repository may
        have become private a moment ago. Raises the registry's refusal.
        """
        if not view.needs_anonymous_check or view.host in self._headless:
            return False
        try:
            await view.upstream.head_blob(view.repository, digest)
        except (Unauthorized, Denied, BadUpstream) as error:
            if not _may_refuse_head_only(error):
                raise
            return False  # an anonymous GET shows whether the refusal is about HEAD or about the blob
        return True


def _may_refuse_head_only(error: RegistryError) -> bool:
    """Whether a GET may succeed where a HEAD failed with this error (RFC 9110 section 15.5.6, or a refusal)."""
    detail = error.detail
    return isinstance(error, Unauthorized | Denied) or (
        isinstance(detail, dict) and detail.get("upstream_status") == 405
    )
