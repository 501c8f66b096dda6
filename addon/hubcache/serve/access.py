"""Who may be served what from the store: the public, or a client whose own credentials the upstream accepted.

A repository is public when an anonymous read of it succeeded upstream, and only that. Knowing a digest is no right,
the configured account's rights are nobody else's, and what one registry says of a digest is no right to bytes that
another registry gave for somebody's credentials.
"""

import base64
import hashlib
import math
import time
from collections.abc import Callable

from cachetools import TLRUCache

from ..decide.policy import VISIBILITY_LIFETIME, is_public
from ..decide.records import Visibility
from ..oci.digest import Digest
from ..oci.errors import RegistryError
from ..oci.json_reader import read_json
from ..store.store import Store
from .best_effort import BestEffortWriter
from .negative_cache import NegativeCache
from .visibility import VisibilityCache

_RENEW_SECONDS = 300.0
"""A verdict is written again only when the stored one is this old: each tag validation confirms it."""

MAX_AUTHORIZED = 10_000
"""Accepted tokens that are remembered; the upstream is asked again about those beyond."""

AUTHORIZED_SECONDS = 60.0
"""How long one accepted request stands for others of the same token and repository, unless the token itself tells that
its end is nearer. The Hub's live 300 s; a registry that tells no lifetime means 60 s (distribution spec, token)."""


_LAST_DATE = 1e12
"""Seconds since the epoch; a later end of a token is none."""


class Access:
    """Verdicts on repositories and on clients' tokens. `max_stale` and `negative_ttl` are in seconds."""

    def __init__(self, store: Store, writer: BestEffortWriter, clock: Callable[[], float] = time.time) -> None:
        self.max_stale = 0.0
        self.negative_ttl = 30.0
        self._store = store
        self._writer = writer
        self._clock = clock
        self._visibility = VisibilityCache(store)
        self._authorized: TLRUCache[tuple[str, str, str], float] = TLRUCache(
            MAX_AUTHORIZED, lambda _, until, __: until, lambda: time.monotonic()
        )
        self._missing = NegativeCache(lambda: time.monotonic())

    # -- content ------------------------------------------------------------------------------------------------------

    def permits(
        self, host: str, repository: str, digest: Digest, authorization: str | None, *, outage: bool = False
    ) -> bool:
        """Whether stored content may be given to an anonymous client, or to `reader`, without asking upstream.

        In an `outage` a public repository stays public for `max_stale` seconds; nothing private is given then.
        """
        return self.belongs_to(host, digest) and self.can_read(host, repository, digest, authorization, outage=outage)

    def belongs_to(self, host: str, digest: Digest) -> bool:
        """Whether stored content is also this registry's, so that its word on who may read it counts.

        What was fetched with credentials belongs to the registries that gave the bytes: one that only says that it has
        a digest may lie, or err. What anybody could read is shared between all.
        """
        hosts = self._store.private.sources(digest)
        return hosts is None or host in hosts

    def can_read(
        self, host: str, repository: str, digest: Digest, authorization: str | None, *, outage: bool = False
    ) -> bool:
        """As `permits`, for content that the caller knows to come from this registry."""
        link = self._store.links.get(host, repository, digest)
        if link is None or (not link.confirmed and self._store.private.has(digest)):
            return False  # anybody can push a manifest that names the digest of somebody's private layer
        return self.can_read_repository(host, repository, authorization, outage=outage)

    # -- repositories -------------------------------------------------------------------------------------------------

    def can_read_repository(
        self, host: str, repository: str, authorization: str | None, *, outage: bool = False
    ) -> bool:
        """As `permits`, for the repository as a whole."""
        if authorization is not None:
            return not outage and (_hidden(authorization), host, repository) in self._authorized
        visibility = self._visibility.get(host, repository)
        return is_public(visibility, self._clock(), self.max_stale if outage else 0.0)

    async def record_accepted(self, host: str, repository: str, authorization: str | None) -> None:
        """A read of the repository succeeded upstream: anonymously, or with `reader`'s own credentials.

        The upstream is asked with a reader's credentials only for what it refused to the public just before. If it said
        404 to the public, and nothing else shows that the repository is public now, the repository is private: without
        this verdict, everybody would be given the reader's content in the next outage.
        """
        if authorization is not None:
            left = min(AUTHORIZED_SECONDS, remaining_life(authorization, self._clock()))
            self._authorized[_hidden(authorization), host, repository] = time.monotonic() + left
            if not self.can_read_repository(host, repository, None):
                await self.record_refused(host, repository, None)
            return
        now = self._clock()
        before = self._visibility.get(host, repository)
        visibility = Visibility(True, now)
        self._visibility.see(host, repository, visibility)
        if before is None or not before.public or not 0 <= now - before.checked_at < _RENEW_SECONDS:
            await self._writer.put_visibility(host, repository, visibility)

    async def record_refused(self, host: str, repository: str, authorization: str | None) -> None:
        """The upstream refused a read (401 or 403): from now on nothing of the repository is given to such a reader."""
        if authorization is not None:
            self._authorized.pop((_hidden(authorization), host, repository), None)
            return
        before = self._visibility.get(host, repository)
        if before is None or not before.public:
            return  # no news; and names that somebody thinks up must not fill the memory
        visibility = Visibility(False, self._clock())
        self._visibility.see(host, repository, visibility, closes=True, now=self._clock())
        if await self._writer.make_private(host, repository, visibility):
            self._visibility.written(host, repository, visibility)

    async def expire_visibility(self, host: str, repository: str, error: RegistryError) -> None:
        """The upstream misses something (404): some registries say so of what became private. Ask again next time.

        Not a refusal: a mistyped tag must not make a repository unusable in an outage. And no doubt when the upstream
        says by its code that it is only the manifest or the blob which is missing: it let us look into the repository.
        """
        detail = error.detail
        if isinstance(detail, dict) and detail.get("upstream_code") in ("MANIFEST_UNKNOWN", "BLOB_UNKNOWN"):
            return
        known = self._visibility.get(host, repository)
        if known is not None and known.public:
            now = self._clock()
            doubtful = Visibility(True, min(known.checked_at, now - VISIBILITY_LIFETIME))
            self._visibility.see(host, repository, doubtful, closes=True, now=now)
            if await self._writer.put_visibility(host, repository, doubtful):
                self._visibility.written(host, repository, doubtful)

    # -- what is not there --------------------------------------------------------------------------------------------

    def remember_error(self, host: str, repository: str, what: str, error: RegistryError, since: int) -> None:
        """Answer the same to the same question for `negative_ttl` seconds, unless the repository changed `since`."""
        self._missing.remember(host, repository, what, error, self.negative_ttl, since)

    def raise_remembered_error(self, host: str, repository: str, what: str) -> int:
        """Raise the remembered answer; where there is none, give what `remember_missing` needs as `since`."""
        return self._missing.raise_remembered(host, repository, what)

    def change_number(self, host: str, repository: str) -> int:
        """Changes when something is pushed to the repository or deleted from it: as what `raise_missing` gives."""
        return self._missing.change_number(host, repository)

    def forget_errors(self, host: str, repository: str) -> None:
        """Something was pushed to the repository, or deleted from it."""
        self._missing.forget(host, repository)


def remaining_life(authorization: str, now: float) -> float:
    """Seconds until a token ends by its own word (RFC 7519 section 4.1.4, `exp`); infinite where it tells nothing."""
    parts = authorization.removeprefix("Bearer ").split(".")
    if len(parts) != 3:
        return math.inf
    try:
        claims = read_json(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:  # not base64, not UTF-8, or not JSON
        return math.inf
    end = claims.get("exp") if isinstance(claims, dict) else None
    return end - now if isinstance(end, int | float) and abs(end) < _LAST_DATE else math.inf


def _hidden(authorization: str) -> str:
    """Credentials are kept as a hash only."""
    return hashlib.sha256(authorization.encode(errors="surrogateescape")).hexdigest()
