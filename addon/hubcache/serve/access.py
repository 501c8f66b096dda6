"""Decides who may be served which stored content: the public, or a client whose credentials the upstream accepted.

A repository is public when an anonymous read of it succeeded upstream, and only then. Knowing a digest grants no
access, and the access of the configured account is not passed on to clients. A registry that lists a digest gains no
access to bytes that another registry delivered for a client's credentials.
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
"""The visibility of a public repository is written again only when the stored record is this old: every validation of
a tag confirms it."""

MAX_AUTHORIZED = 10_000
"""Accepted pairs of credentials and repository that are remembered; beyond them, the upstream is asked again."""

AUTHORIZED_SECONDS = 60.0
"""How long credentials count as accepted for a repository after a request, unless the token itself expires earlier. The
Hub's tokens live 300 s; a token without a lifetime lives 60 s (distribution spec, "Token Authentication")."""

_LAST_DATE = 1e12
"""Seconds since the epoch; a token that expires later has no expiry."""


class Access:
    """Visibility of repositories, and accepted credentials of clients.

    `max_stale` and `negative_ttl` are in seconds. An `authorization` is a client's own `Authorization`, None for the
    public.
    """

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
        self._negative_cache = NegativeCache(lambda: time.monotonic())

    # -- content ------------------------------------------------------------------------------------------------------

    def permits(
        self, host: str, repository: str, digest: Digest, authorization: str | None, *, outage: bool = False
    ) -> bool:
        """Whether stored content may be served without asking upstream.

        In an `outage` a public repository stays public for `max_stale` seconds; private content is not served then.
        """
        return self.belongs_to(host, digest) and self.can_read(host, repository, digest, authorization, outage=outage)

    def belongs_to(self, host: str, digest: Digest) -> bool:
        """Whether this registry may decide who reads this stored content.

        Content that was downloaded with credentials belongs to the registries that delivered its bytes: a registry that
        only lists the digest may be wrong, or lie. Content that was public somewhere belongs to all registries.
        """
        hosts = self._store.private.sources(digest)
        return hosts is None or host in hosts

    def can_read(
        self, host: str, repository: str, digest: Digest, authorization: str | None, *, outage: bool = False
    ) -> bool:
        """Whether content that belongs to this registry may be served without asking upstream, see `permits`."""
        link = self._store.links.get(host, repository, digest)
        if link is None or (not link.confirmed and self._store.private.has(digest)):
            return False  # anyone can push a manifest that names the digest of a private layer
        return self.can_read_repository(host, repository, authorization, outage=outage)

    # -- repositories -------------------------------------------------------------------------------------------------

    def can_read_repository(
        self, host: str, repository: str, authorization: str | None, *, outage: bool = False
    ) -> bool:
        """Whether the repository may be read without asking upstream, see `permits`."""
        if authorization is not None:
            return not outage and (_hashed(authorization), host, repository) in self._authorized
        visibility = self._visibility.get(host, repository)
        return is_public(visibility, self._clock(), self.max_stale if outage else 0.0)

    def visibility(self, host: str, repository: str) -> Visibility | None:
        """Return what was last observed of a repository; None when nothing is known, as if it never was public."""
        return self._visibility.get(host, repository)

    async def record_accepted(
        self, host: str, repository: str, authorization: str | None, answered_at: float | None = None
    ) -> bool:
        """Record that a read of the repository succeeded upstream at `answered_at`, in seconds since the epoch (None:
        now). An answer that is older than what is known changes nothing. Returns False for an anonymous read if the
        repository was refused after that answer.

        A client's credentials are sent upstream only after an anonymous request for the same content failed. If that
        request got a 404, and nothing else shows that the repository is public now, the repository is recorded as
        private: otherwise every client would be served this client's content in the next outage.
        """
        if authorization is not None:
            left = min(AUTHORIZED_SECONDS, remaining_life(authorization, self._clock()))
            self._authorized[_hashed(authorization), host, repository] = time.monotonic() + left
            if not self.can_read_repository(host, repository, None):
                await self.record_refused(host, repository, None)
            return True
        now = self._clock()
        checked_at = now if answered_at is None else min(answered_at, now)
        before = self._visibility.get(host, repository)
        if before is not None and checked_at < before.checked_at <= now:
            return before.public
        visibility = Visibility(True, checked_at)
        self._visibility.observe(host, repository, visibility)
        if before is None or not before.public or not 0 <= now - before.checked_at < _RENEW_SECONDS:
            await self._writer.put_visibility(host, repository, visibility)
        return True

    async def record_refused(self, host: str, repository: str, authorization: str | None) -> None:
        """Record that the upstream refused a read (401 or 403): stored content of the repository is not served."""
        if authorization is not None:
            self._authorized.pop((_hashed(authorization), host, repository), None)
            return
        before = self._visibility.get(host, repository)
        if before is None or not before.public:
            return  # nothing changes; and names that a client invents must not fill the cache
        visibility = Visibility(False, self._clock())
        self._visibility.close(host, repository, visibility, self._clock())
        if await self._writer.make_private(host, repository, visibility):
            self._visibility.written(host, repository, visibility)

    async def expire_visibility(self, host: str, repository: str, error: RegistryError) -> None:
        """Have the next request ask upstream, since some registries answer 404 for what became private.

        A 404 is no refusal: a mistyped tag must not make a repository unusable in an outage. It changes nothing when
        its error code says that only the manifest or the blob is missing: then the repository could be read.
        """
        detail = error.detail
        if isinstance(detail, dict) and detail.get("upstream_code") in ("MANIFEST_UNKNOWN", "BLOB_UNKNOWN"):
            return
        known = self._visibility.get(host, repository)
        if known is not None and known.public:
            now = self._clock()
            expired = Visibility(True, min(known.checked_at, now - VISIBILITY_LIFETIME))
            self._visibility.close(host, repository, expired, now)
            if await self._writer.put_visibility(host, repository, expired):
                self._visibility.written(host, repository, expired)

    # -- error answers ------------------------------------------------------------------------------------------------

    def remember_error(
        self, host: str, repository: str, request_key: str, error: RegistryError, change_number: int
    ) -> None:
        """Raise this error for the same request for `negative_ttl` seconds after the registry answered with it, unless
        the repository changed meanwhile."""
        age = 0.0 if error.answered_at is None else max(0.0, self._clock() - error.answered_at)
        self._negative_cache.remember(host, repository, request_key, error, self.negative_ttl - age, change_number)

    def raise_remembered_error(self, host: str, repository: str, request_key: str) -> int:
        """Raise the remembered error; without one, return the change number that `remember_error` takes."""
        return self._negative_cache.raise_remembered(host, repository, request_key)

    def change_number(self, host: str, repository: str) -> int:
        """Return a number that changes when something is pushed to the repository or deleted from it."""
        return self._negative_cache.change_number(host, repository)

    def forget_errors(self, host: str, repository: str) -> None:
        """Drop remembered errors of a repository that something was pushed to or deleted from."""
        self._negative_cache.forget(host, repository)


def remaining_life(authorization: str, now: float) -> float:
    """Return the seconds until a token expires (RFC 7519 section 4.1.4, `exp`); infinite where it has no expiry."""
    parts = authorization.removeprefix("Bearer ").split(".")
    if len(parts) != 3:
        return math.inf
    try:
        claims = read_json(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:  # not base64, not UTF-8, or not JSON
        return math.inf
    end = claims.get("exp") if isinstance(claims, dict) else None
    return end - now if isinstance(end, int | float) and abs(end) < _LAST_DATE else math.inf


def _hashed(authorization: str) -> str:
    """Return a hash of credentials, which is kept in their place."""
    return hashlib.sha256(authorization.encode(errors="surrogateescape")).hexdigest()
