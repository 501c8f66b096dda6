"""Answers requests to registries: whose credentials count, what is forwarded, and how errors become answers.

Every `RegistryError` becomes an answer here, or the request is forwarded with the client's own credentials.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from ..decide.throttle import Throttle
from ..oci.digest import Digest
from ..oci.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    DigestInvalid,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    StorageError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from ..oci.reference import (
    BlobTarget,
    ManifestTarget,
    OtherTarget,
    Ping,
    ReferrersTarget,
    Target,
    is_api_path,
    parse_target,
    subject_of_tag,
    uploaded_digest,
)
from ..oci.registry import HUB_REALM, HUB_SERVICE, Registry
from ..store.store import Store
from ..transfer.breaker import CircuitOpen
from ..transfer.challenge import Challenge
from ..transfer.tokens import pull_scope
from ..transfer.upstream import Upstream
from .access import Access
from .cached_blobs import CachedBlobs
from .cached_referrers import CachedReferrers
from .challenges import INSUFFICIENT, INVALID, client_challenge
from .content_service import ContentService, ContentTarget
from .errors import API_VERSION, error_answer
from .manifest_validation import ManifestValidation
from .messages import Answer, Change, Forward, Listener, Request, Result
from .repository_view import RepositoryView

logger = logging.getLogger("hubcache")

_REPEAT_SECONDS = 60.0
_KINDS: dict[type, str] = {Ping: "ping", ManifestTarget: "manifest", BlobTarget: "blob", ReferrersTarget: "referrers"}


class RegistryService:
    """Answers requests to all registries (`upstreams` by host). `authorize`: private images are stored, too."""

    def __init__(
        self,
        store: Store,
        access: Access,
        content: ContentService,
        validation: ManifestValidation,
        blobs: CachedBlobs,
        referrers: CachedReferrers,
        upstreams: Mapping[str, Upstream],
    ) -> None:
        self.authorize = False
        self._store = store
        self._access = access
        self._content = content
        self._validation = validation
        self._blobs = blobs
        self._referrers = referrers
        self._upstreams = upstreams
        self._throttle = Throttle(_REPEAT_SECONDS, time.monotonic)

    async def answer(self, request: Request) -> Answer | Forward:
        """Return the answer to a request, or how to forward it."""
        kind = "other"
        try:
            target = parse_target(request.path)
            kind = _KINDS.get(type(target), kind)
            outcome = await self._answer(request, target)
        except RegistryError as error:
            outcome = error_answer(error, request.method)
        except StorageError as error:
            outcome = error_answer(Unavailable(str(error)), request.method)
        outcome.kind = kind
        if isinstance(outcome, Answer) and outcome.result is Result.STALE:
            self._log_stale(request, outcome.headers["Cache-Status"])
        return outcome

    def _log_stale(self, request: Request, status: str) -> None:
        """Log why stale content is served, each reason once in `_REPEAT_SECONDS`, as many clients may ask for it."""
        reason = status.partition("detail=")[2]
        if self._throttle.permits((request.registry.host, reason)):
            logger.info("hubcache: stale copies of %s are served: %s", request.registry.host, reason)

    async def _answer(self, request: Request, target: Target) -> Answer | Forward:
        """Answer a request; referrers that cannot be fetched now are answered with 404.

        A pull does not need referrers, but an error would end it (Docker Engine 29).
        """
        try:
            return await self._wait_for_probe(request, target)
        except (Unavailable, TooManyRequests, BadUpstream) as error:
            if request.method not in ("GET", "HEAD") or not _is_about_referrers(target):
                raise
            raise ManifestUnknown("no referrers are stored for this manifest", {"reason": error.message}) from error

    async def _wait_for_probe(self, request: Request, target: Target) -> Answer | Forward:
        """Answer a request; if it needs an upstream whose circuit has just opened, wait for the first probe."""
        try:
            return await self._route(request, target)
        except CircuitOpen as error:
            if not await error.wait_for_probe():
                raise
        return await self._route(request, target)

    async def _route(self, request: Request, target: Target) -> Answer | Forward:
        if request.listener is Listener.MIRROR and not _is_allowed_at_mirror(request.path, target):
            raise NameUnknown("a mirror serves only the registry API", {"path": request.path[:200]})
        if isinstance(target, OtherTarget) or request.method not in ("GET", "HEAD"):
            return await self._forward(request, target)
        if isinstance(target, Ping):
            return await self._ping(request)
        return await self._read(request, target)

    # -- reads ----------------------------------------------------------------------------------------------------

    async def _read(self, request: Request, target: ContentTarget) -> Answer | Forward:
        """Answer with what the public may read, else with what the client's own credentials may read."""
        own = request.credentials if request.listener is Listener.PROXY else None
        upstream = self._upstreams[request.registry.host]
        public = RepositoryView(upstream, target.repository, client_authorization=own, client=request.client)
        try:
            return await self._content.answer(request, public, target)
        except (Unauthorized, Denied, ManifestUnknown, BlobUnknown) as error:
            is_missing = isinstance(error, ManifestUnknown | BlobUnknown)
            if is_missing and self._access.can_read_repository(request.registry.host, target.repository, None):
                raise  # credentials give access to nothing more in a public repository
            if own is None:
                raise self._refusal(request, target.repository, error) from error
        except (Unavailable, TooManyRequests) as error:
            # Nothing is stored, and the public view cannot be requested (there is no token for it, or its rate limit is
            # used up). The client's own credentials may still work, unless their rate limit is used up, too: then a
            # client that retries at once (containerd: 5 times) receives the 429 from here.
            kind = _KINDS[type(target)]
            if own is None or not upstream.is_reachable or upstream.is_rate_limited(kind, own):
                raise
            if _is_about_referrers(target) and isinstance(error, Unavailable):
                raise
            return Forward(own)
        if not self.authorize:
            return _forward_if_reachable(upstream, own)
        private = RepositoryView(upstream, target.repository, authorization=own, client=request.client)
        try:
            answer = await self._content.answer(request, private, target)
        except (Unauthorized, Denied) as error:
            raise self._refusal(request, target.repository, error, sent=own) from error
        answer.is_private = True
        return answer

    def _refusal(
        self, request: Request, repository: str, error: RegistryError, sent: str | None = None
    ) -> RegistryError:
        """Return the error for a client that may not read; `sent` are its credentials that went upstream."""
        is_public = self._access.can_read_repository(request.registry.host, repository, None)
        if request.has_unverified_token and not is_public:
            failure = self._upstreams[request.registry.host].token_service_failure
            if failure is not None:
                return Unavailable(f"token service cannot be reached: {failure}", error.detail)
        if not isinstance(error, Unauthorized | Denied):
            return error
        if request.listener is Listener.MIRROR:  # it has no accounts: after a 404 clients go on to their next host
            return ManifestUnknown("not known to this mirror", error.detail)
        if isinstance(error, Denied):
            return error
        challenge = Challenge.parse(error.challenge)
        if challenge is None:
            return Unauthorized(error.message, error.challenge, error.detail)
        presented = request.headers.get("authorization")
        reason = challenge.error if sent is not None else INVALID if request.has_unverified_token else INSUFFICIENT
        demanded = client_challenge(
            request.registry,
            replace(challenge, scope=pull_scope(repository)),
            reason if presented is not None else None,
        )
        return Unauthorized(error.message, demanded.render(), error.detail)

    def count_repeats(self, request: Request, answer: Answer, count: int) -> None:
        """Count an answer that was repeated `count` times, see `ContentService.count_repeats`."""
        self._content.count_repeats(request, answer, count)

    # -- pings and forwarded requests -----------------------------------------------------------------------------

    async def _ping(self, request: Request) -> Answer:
        """Answer `/v2/` (distribution spec, "Determining Support") without the upstream, so that it works in an outage.

        Clients of the proxy receive the registry's challenge: dockerd's classic puller sends credentials only after it
        received a challenge here.
        """
        if request.listener is Listener.PROXY and request.headers.get("authorization") is None:
            challenge = await self._challenge(request.registry)
            header = challenge.render() if challenge else self._upstreams[request.registry.host].other_challenge
            if header is not None:
                demand = error_answer(Unauthorized("authentication required", header), request.method)
                demand.result = Result.LOCAL
                return demand
        return Answer(200, API_VERSION | {"Content-Type": "application/json"}, Result.LOCAL, body=b"{}", length=2)

    async def _challenge(self, registry: Registry) -> Challenge | None:
        """Return the challenge for clients: the Hub's is constant, another registry's is requested once and stored."""
        if registry.is_hub:
            return Challenge(HUB_REALM, HUB_SERVICE, None)
        known = Challenge.parse(self._store.registries.challenge(registry.host))
        known = known or await self._upstreams[registry.host].challenge()
        return None if known is None else client_challenge(registry, known)

    async def _forward(self, request: Request, target: Target) -> Forward:
        """Forward pushes and other requests that are not answered from the cache.

        A read without credentials gets an anonymous token of the real service, since the cache issued the client's
        token.
        """
        repository = None if isinstance(target, Ping) else target.repository
        upstream = self._upstreams[request.registry.host]
        authorization = request.credentials
        if authorization is None and repository is not None and request.method in ("GET", "HEAD"):
            try:
                authorization = await upstream.anonymous_authorization(repository)
            except Unauthorized as error:  # the token service issues no anonymous tokens
                raise self._refusal(request, repository, error) from error
        return _forward_if_reachable(upstream, authorization, _change_of(request, target))

    async def content_changed(self, registry: Registry, change: Change, subject: str | None = None) -> None:
        """Forget what an accepted push or delete through this proxy changed; `subject` is the `OCI-Subject`."""
        repository, reference, is_blob = change
        self._access.forget_errors(registry.host, repository)
        if is_blob:  # it has no referrers, and no tag refers to it
            await self._blobs.forget(registry.host, repository, Digest.parse(reference))
            return
        await self._validation.forget(registry.host, repository, reference)
        try:
            subject_digest = None if subject is None else Digest.parse(subject)
        except DigestInvalid:
            subject_digest = None
        await self._referrers.forget(registry.host, repository, reference, subject_digest)


def _forward_if_reachable(upstream: Upstream, authorization: str | None, change: Change | None = None) -> Forward:
    """Forward a request; raises `Unavailable` while the circuit is open, since mitmproxy would wait for minutes."""
    if not upstream.is_reachable:
        raise Unavailable("upstream is down, and the request needs it")
    return Forward(authorization, change)


def _is_allowed_at_mirror(path: str, target: Target) -> bool:
    """Whether a path is part of the API: it names a repository or an extension, which begins with `_` (`_catalog`)."""
    return is_api_path(path) and (target != OtherTarget(None) or path.startswith("/v2/_"))


def _is_about_referrers(target: Target) -> bool:
    """Whether a request is for referrers, by the API or by a tag made from the digest."""
    if isinstance(target, ManifestTarget):
        return not isinstance(target.reference, Digest) and subject_of_tag(target.reference) is not None
    return isinstance(target, ReferrersTarget)


def _change_of(request: Request, target: Target) -> Change | None:
    """Return the change that a request makes if the registry accepts it."""
    match target:
        case ManifestTarget(repository, reference):
            return Change(repository, str(reference))
        case BlobTarget(repository, digest):
            return Change(repository, str(digest), is_blob=True)
        case OtherTarget(str(repository)) if request.method in ("POST", "PUT"):
            blob = uploaded_digest(request.query)
            return None if blob is None else Change(repository, str(blob), is_blob=True)
    return None
