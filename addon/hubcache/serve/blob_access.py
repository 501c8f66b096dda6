"""Whether a view may read a blob, by the registry's word; and with which credentials its bytes are fetched."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

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
from ..transfer.blob_body import BlobBody
from ..transfer.coalesce import Coalescer
from ..transfer.sources import OpenRange
from .access import Access
from .best_effort import BestEffortWriter
from .cached_manifests import PATIENCE_SECONDS
from .repository_view import RepositoryView

HEADLESS_SECONDS = 3600.0
"""How long a registry that refused a HEAD of a blob, and accepted the GET, is not asked by HEAD again."""

_MAX_REGISTRIES = 1000


class BlobAccess:
    """Asks by HEAD. Where a registry refuses that (ECR Public answers 401 to it, and 307 to GET), the GET decides."""

    def __init__(self, store: Store, writer: BestEffortWriter, access: Access) -> None:
        self._store = store
        self._writer = writer
        self._access = access
        self._checks = Coalescer[tuple[str, str, str, Digest], int | None]()
        self._headless: TTLCache[str, None] = TTLCache(_MAX_REGISTRIES, HEADLESS_SECONDS, lambda: time.monotonic())

    async def check(self, view: RepositoryView, digest: Digest) -> str | None:
        """Raise unless a blob of the view's registry may be given: that another repository has it is no right.

        None, or the reason why the upstream's word is not needed although it should have been asked (an outage).
        """
        if self._access.can_read(view.host, view.repository, digest, view.authorization):
            return None
        spare = self._access.can_read(view.host, view.repository, digest, view.authorization, outage=True)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS if spare else None):
                await self.ask(view, digest)
        except (Unavailable, TooManyRequests, BadUpstream, TimeoutError) as error:
            failure = Unavailable("upstream is slow") if isinstance(error, TimeoutError) else error
            if not self._access.can_read(view.host, view.repository, digest, view.authorization, outage=True):  # by now
                raise failure from error
            return failure.message
        return None

    async def ask(self, view: RepositoryView, digest: Digest) -> int | None:
        """Whether the view may see the blob, by the upstream's word; its size if known."""
        since = self._access.raise_remembered_error(view.host, view.repository, view.request_key(str(digest)))
        try:
            told = await self._checks.run((*view.key, digest), lambda: self._look(view, digest))
        except (BlobUnknown, Unauthorized, Denied) as error:
            await self.record_refused(view, digest, error, since)
            raise
        await self.record_accepted(view, digest)
        link = self._store.links.get(view.host, view.repository, digest)
        return told if told is not None or link is None else link.size

    async def _look(self, view: RepositoryView, digest: Digest) -> int | None:
        if view.host in self._headless:
            return await self._look_by_get(view, digest)
        try:
            return await view.upstream.head_blob(view.repository, digest, view.authorization)
        except (Unauthorized, Denied, BadUpstream) as error:
            if not _refuses_head(error):
                raise
        size = await self._look_by_get(view, digest)
        self._headless[view.host] = None
        return size

    @staticmethod
    async def _look_by_get(view: RepositoryView, digest: Digest) -> int | None:
        """By the head of a GET: the connection is closed before its body."""
        async with view.upstream.open_blob(view.repository, digest, authorization=view.authorization) as body:
            return body.size

    async def record_accepted(self, view: RepositoryView, digest: Digest) -> None:
        """Remember that the view may see the blob. Not its size as told here: a wrong one would make it unfetchable."""
        await self._access.record_accepted(view.host, view.repository, view.authorization)
        await self._writer.put_links(view.host, view.repository, {digest: None})

    async def record_refused(self, view: RepositoryView, digest: Digest, error: RegistryError, since: int) -> None:
        """Remember a refusal, for this view only; `since` is what `Gate.raise_missing` gave before the question."""
        if isinstance(error, BlobUnknown):
            if view.authorization is None:
                await self._access.expire_visibility(view.host, view.repository, error)
        else:
            await self._access.record_refused(view.host, view.repository, view.authorization)
        if view.authorization is None:  # not before: what turned private is found by its links
            await self._writer.unlink(view.host, view.repository, digest)
        self._access.remember_error(view.host, view.repository, view.request_key(str(digest)), error, since)

    def opener(self, view: RepositoryView, digest: Digest) -> OpenRange:
        """How to open the blob upstream, with the first credentials that are accepted for it."""

        @asynccontextmanager
        async def open_range(start: int, end: int | None) -> AsyncIterator[BlobBody]:
            async with AsyncExitStack() as stack:
                *others, last = await self._credentials(view, digest)
                for authorization in others:
                    try:
                        body = await stack.enter_async_context(
                            view.upstream.open_blob(view.repository, digest, start, end, authorization)
                        )
                    except (Unauthorized, Denied, BlobUnknown, TooManyRequests, HeaderInvalid):
                        continue
                    break
                else:
                    body = await stack.enter_async_context(
                        view.upstream.open_blob(view.repository, digest, start, end, last)
                    )
                yield body

        return open_range

    async def _credentials(self, view: RepositoryView, digest: Digest) -> list[str | None]:
        """For a reader its own. For the public view the client's or the account's only when the public may read the
        blob now, by the registry's word: what was public a moment ago may be private. Without that word, none."""
        if not view.needs_anonymous_check or view.host in self._headless:
            return [view.authorization]
        try:
            await view.upstream.head_blob(view.repository, digest)
        except (Unauthorized, Denied, BadUpstream) as error:
            if not _refuses_head(error):
                raise
            return [None]  # whether that is about HEAD or about the blob, an anonymous GET tells
        return await view.download_authorizations()


def _refuses_head(error: RegistryError) -> bool:
    """Whether a refusal may be of HEAD only (RFC 9110 section 15.5.6, or a registry that demands more for it)."""
    detail = error.detail
    return isinstance(error, Unauthorized | Denied) or (
        isinstance(detail, dict) and detail.get("upstream_status") == 405
    )
