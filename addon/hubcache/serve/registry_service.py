"""Answers requests to registries: which kind it is, what the store and the upstream say, and how errors are told.

Every `RegistryError` raised below becomes an answer (or a pass-through with the client's own credentials) here.
"""

import logging
import time
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
from ..oci.media import normalize_accept
from ..oci.reference import (
    BlobTarget,
    ManifestTarget,
    OtherTarget,
    Ping,
    ReferrersTarget,
    Target,
    is_api_path,
    parse_target,
    referrers_query,
    subject_of_tag,
    uploaded_digest,
)
from ..oci.registry import HUB_REALM, HUB_SERVICE, Registry
from ..store.store import Store
from ..transfer.breaker import CircuitOpen
from ..transfer.challenge import Challenge
from ..transfer.sources import FileSource
from ..transfer.tokens import pull_scope
from ..transfer.upstream import Upstream
from .access import Access
from .answers import DIGEST, blob_answer, etag, listing_answer, manifest_answer
from .cached_blobs import BlobResult, CachedBlobs
from .cached_manifests import CachedManifests
from .cached_referrers import CachedReferrers
from .challenges import INSUFFICIENT, INVALID, client_challenge
from .errors import API_VERSION, error_answer
from .messages import Answer, Change, Forward, Listener, Request, Result
from .pull_counting import PullCounter
from .repeated_downloads import RepeatedDownloads
from .repository_view import RepositoryView
from .stored_only_mirror import StoredOnlyMirror
from .tag_refresh import TagRefresh

logger = logging.getLogger("hubcache")

_SAY_SECONDS = 60.0
_KINDS: dict[type, str] = {Ping: "ping", ManifestTarget: "manifest", BlobTarget: "blob", ReferrersTarget: "referrers"}

type _Content = ManifestTarget | BlobTarget | ReferrersTarget


class RegistryService:
    """All registries. `upstreams` is by registry host; `authorize` is the option of keeping private images,
    `offer_only` that of a mirror door which answers 404 for what is not here."""

    def __init__(
        self,
        store: Store,
        access: Access,
        manifests: CachedManifests,
        blobs: CachedBlobs,
        tag_refresh: TagRefresh,
        stored_only_mirror: StoredOnlyMirror,
        referrers: CachedReferrers,
        upstreams: dict[str, Upstream],
        *,
        authorize: bool = False,
        stored_only: bool = False,
    ) -> None:
        self._store = store
        self._access = access
        self._manifests = manifests
        self._blobs = blobs
        self._tag_refresh = tag_refresh
        self._mirror = stored_only_mirror
        self._referrers = referrers
        self._pulls = PullCounter()
        self._repeated_downloads = RepeatedDownloads()
        self._throttle = Throttle(_SAY_SECONDS, time.monotonic)
        self._upstreams = upstreams
        self.authorize = authorize
        self.stored_only = stored_only

    async def answer(self, request: Request) -> Answer | Forward:
        """Answer a request to a registry, or say how to pass it on."""
        kind = "other"
        try:
            target = parse_target(request.path)
            kind = _KINDS.get(type(target), kind)
            outcome = await self._outcome(request, target)
        except RegistryError as error:
            outcome = error_answer(error, request.method)
        except StorageError as error:
            outcome = error_answer(Unavailable(str(error)), request.method)
        outcome.kind = kind
        if isinstance(outcome, Answer) and outcome.result is Result.STALE:
            self._say_why_stale(request, outcome.headers["Cache-Status"])
        return outcome

    def _say_why_stale(self, request: Request, status: str) -> None:
        """In the log, once in a while for each reason: a fleet would else fill it."""
        reason = status.partition("detail=")[2]
        if self._throttle.permits((request.registry.host, reason)):
            logger.info("hubcache: stale copies of %s are served: %s", request.registry.host, reason)

    async def _outcome(self, request: Request, target: Target) -> Answer | Forward:
        """Referrers that cannot be asked for are a 404: clients ask for them beside a pull that does not need them, and
        an error would end it (Docker Engine 29)."""
        try:
            return await self._route_patiently(request, target)
        except (Unavailable, TooManyRequests, BadUpstream) as error:
            if request.method not in ("GET", "HEAD") or not _is_about_referrers(target):
                raise
            raise ManifestUnknown("referrers are not known here", {"reason": error.message}) from error

    async def _route_patiently(self, request: Request, target: Target) -> Answer | Forward:
        """Nothing stored can be given instead: wait for the first probe of a circuit that has just opened."""
        try:
            return await self._route(request, target)
        except CircuitOpen as error:
            if not await error.wait_for_probe():
                raise
        return await self._route(request, target)

    async def _route(self, request: Request, target: Target) -> Answer | Forward:
        if request.listener is Listener.MIRROR and not _is_meant_for_a_mirror(request.path, target):
            raise NameUnknown("a mirror has nothing but the registry API", {"path": request.path[:200]})
        if isinstance(target, OtherTarget) or request.method not in ("GET", "HEAD"):
            return await self._pass_on(request, target)
        if isinstance(target, Ping):
            return await self._ping(request)
        return await self._read(request, target)

    async def _read(self, request: Request, target: _Content) -> Answer | Forward:
        """Content, or what refers to it: as far as anybody may see it, else with the client's own credentials."""
        own = request.credentials if request.listener is Listener.PROXY else None
        upstream = self._upstreams[request.registry.host]
        try:
            return await self._look_up(
                request,
                RepositoryView(upstream, target.repository, client_authorization=own, client=request.client),
                target,
            )
        except (Unauthorized, Denied, ManifestUnknown, BlobUnknown) as error:
            missing = isinstance(error, ManifestUnknown | BlobUnknown)
            if missing and self._access.can_read_repository(request.registry.host, target.repository, None):
                raise  # known to be public: what the public does not find there, nobody does
            if own is None:
                raise self._refusal(request, target.repository, error) from error
        except (Unavailable, TooManyRequests) as error:
            # Nothing stored, and the anonymous view cannot be asked (no token for it, its rate limit is used up):
            # with credentials of its own the client may still get through, unless they were limited, too: a client
            # that tries again at once (containerd: 5 times) is to hear it from here.
            kind = _KINDS[type(target)]
            if own is None or not upstream.is_reachable or upstream.is_rate_limited(kind, own):
                raise
            if _is_about_referrers(target) and isinstance(error, Unavailable):
                raise
            return Forward(own)
        if not self.authorize:
            return self._forward(upstream, own)
        try:
            return await self._look_up(
                request, RepositoryView(upstream, target.repository, authorization=own, client=request.client), target
            )
        except (Unauthorized, Denied) as error:
            raise self._refusal(request, target.repository, error, sent=own) from error

    @staticmethod
    def _forward(upstream: Upstream, authorization: str | None, moved: Change | None = None) -> Forward:
        """Pass a request on, unless nobody is there: mitmproxy would wait for minutes."""
        if not upstream.is_reachable:
            raise Unavailable("upstream is down, and the request needs it")
        return Forward(authorization, moved)

    async def _look_up(self, request: Request, view: RepositoryView, target: _Content) -> Answer:
        if isinstance(target, ReferrersTarget):
            return await self._listing(request, view, target)
        if request.listener is Listener.MIRROR and self.stored_only:
            return await self._offer(request, view, target)
        if isinstance(target, BlobTarget):
            return await self._blob(request, view, target)
        return await self._manifest(request, view, target)

    def _refusal(
        self, request: Request, repository: str, error: RegistryError, sent: str | None = None
    ) -> RegistryError:
        """How a client is told that there is nothing for it, with the credentials of its own that were `sent`."""
        if request.has_unverified_token and not self._access.can_read_repository(
            request.registry.host, repository, None
        ):
            trouble = self._upstreams[request.registry.host].token_service_failure
            if trouble is not None:
                return Unavailable(f"token service cannot be reached: {trouble}", error.detail)
        if not isinstance(error, Unauthorized | Denied):
            return error
        if request.listener is Listener.MIRROR:  # a mirror has no accounts: 404 sends every client on to its next host
            return ManifestUnknown("not known to this mirror", error.detail)
        if isinstance(error, Denied):
            return error
        challenge = Challenge.parse(error.challenge)
        if challenge is None:
            return Unauthorized(error.message, error.challenge, error.detail)
        presented = request.headers.get("authorization")
        reason = challenge.error if sent is not None else INVALID if request.has_unverified_token else INSUFFICIENT
        asked = replace(challenge, scope=pull_scope(repository))
        told = client_challenge(request.registry, asked, reason if presented is not None else None)
        return Unauthorized(error.message, told.render(), error.detail)

    # -- manifests and blobs --------------------------------------------------------------------------------------

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
        return manifest_answer(request, found)

    def count_repeats(self, request: Request, answer: Answer) -> None:
        """This answer of a moment ago was given again: to whoever asked, that is a pull like another."""
        if answer.kind in ("manifest", "blob") and DIGEST in answer.headers:
            self._count(request, Digest.parse(answer.headers[DIGEST]))

    def _count(self, request: Request, digest: Digest) -> None:
        if self._pulls.is_new_pull(request.client, digest):
            self._store.popularity.count_request(digest)

    async def _listing(self, request: Request, view: RepositoryView, target: ReferrersTarget) -> Answer:
        known_only = request.listener is Listener.MIRROR and self.stored_only
        query = referrers_query(request.query)
        listed = await self._referrers.by_subject(view, target.digest, query, known_only=known_only)
        self._count(request, listed.digest)
        return listing_answer(request, target, listed)

    async def _blob(self, request: Request, view: RepositoryView, target: BlobTarget) -> Answer:
        if request.method == "HEAD":
            blob = await self._blobs.head(view, target.digest)
        else:
            condition = request.headers.get("if-range")
            usable = condition is None or condition == etag(target.digest)
            wanted = request.headers.get("range") if usable else None
            self._count(request, target.digest)
            self._suspect(request, target.digest)
            blob = await self._blobs.get(view, target.digest, wanted, bypass_store=request.bypass_store)
        return await self._blob_answer(request, target.digest, blob)

    def _suspect(self, request: Request, digest: Digest) -> None:
        """A whole blob that this client was just sent is verified before it is served again."""
        if (
            request.method == "GET"
            and "range" not in request.headers
            and self._repeated_downloads.is_repeat(request, digest)
        ):
            self._store.inspector.suspect(digest)

    async def _blob_answer(self, request: Request, digest: Digest, blob: BlobResult) -> Answer:
        answer = blob_answer(request, digest, blob)
        if blob.source is not None and answer.source is None:
            await blob.source.close()
        if answer.status == 200 and isinstance(blob.source, FileSource):
            blob.source.on_close = lambda: self._repeated_downloads.record_sent(request, digest)
        return answer

    async def _offer(self, request: Request, view: RepositoryView, target: ManifestTarget | BlobTarget) -> Answer:
        """As a mirror that has only what it has."""
        head = request.method == "HEAD"
        if isinstance(target, BlobTarget):
            self._suspect(request, target.digest)
            blob = await self._mirror.blob(view, target.digest, request.headers.get("range"), head=head)
            self._count(request, target.digest)
            return await self._blob_answer(request, target.digest, blob)
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

    # -- ping and pass-through ------------------------------------------------------------------------------------

    async def _ping(self, request: Request) -> Answer:
        """Answered here, so that it works in an outage. In the proxy door with the registry's challenge: dockerd's
        classic puller learns only from the ping that it may authenticate, and a logged-in client must."""
        if request.listener is Listener.PROXY and request.headers.get("authorization") is None:
            challenge = await self._challenge(request.registry)
            header = challenge.render() if challenge else self._upstreams[request.registry.host].other_challenge
            if header is not None:
                demand = error_answer(Unauthorized("authentication required", header), request.method)
                demand.result = Result.LOCAL
                return demand
        return Answer(200, API_VERSION | {"Content-Type": "application/json"}, Result.LOCAL, body=b"{}", length=2)

    async def _challenge(self, registry: Registry) -> Challenge | None:
        """The challenge to tell clients: known for the Hub, else learned from the upstream and remembered."""
        if registry.is_hub:
            return Challenge(HUB_REALM, HUB_SERVICE, None)
        known = Challenge.parse(self._store.registries.challenge(registry.host))
        known = known or await self._upstreams[registry.host].challenge()
        return None if known is None else client_challenge(registry, known)

    async def _pass_on(self, request: Request, target: Target) -> Forward:
        """Pushes and whatever is not cached. A read without credentials gets an anonymous token of ours: the client
        believes that the one it has is good."""
        repository = None if isinstance(target, Ping) else target.repository
        upstream = self._upstreams[request.registry.host]
        authorization = request.credentials
        if authorization is None and repository is not None and request.method in ("GET", "HEAD"):
            try:
                authorization = await upstream.anonymous_authorization(repository)
            except Unauthorized as error:  # the token service gives anonymous clients none
                raise self._refusal(request, repository, error) from error
        return self._forward(upstream, authorization, _change_of(request, target))

    async def content_changed(self, registry: Registry, moved: Change, subject: str | None = None) -> None:
        """A push or a delete through this proxy was accepted; `subject` is what the registry says it refers to."""
        repository, reference, is_blob = moved
        self._access.forget_errors(registry.host, repository)
        if is_blob:  # refers to nothing, and no tag is at it
            await self._blobs.forget(registry.host, repository, Digest.parse(reference))
            return
        await self._manifests.forget(registry.host, repository, reference)
        try:
            about = None if subject is None else Digest.parse(subject)
        except DigestInvalid:
            about = None
        await self._referrers.forget(registry.host, repository, reference, about)


def _is_meant_for_a_mirror(path: str, target: Target) -> bool:
    """Whether a path is one of the API: with a repository, or an extension's (`_catalog` and others begin with `_`)."""
    return is_api_path(path) and (target != OtherTarget(None) or path.startswith("/v2/_"))


def _is_about_referrers(target: Target) -> bool:
    """Whether a request is for what refers to a manifest, by the API or by a tag made from the digest."""
    if isinstance(target, ManifestTarget):
        return not isinstance(target.reference, Digest) and subject_of_tag(target.reference) is not None
    return isinstance(target, ReferrersTarget)


def _change_of(request: Request, target: Target) -> Change | None:
    """What a request changes when it is accepted: `Forward.moved`."""
    match target:
        case ManifestTarget(repository, reference):
            return Change(repository, str(reference))
        case BlobTarget(repository, digest):
            return Change(repository, str(digest), is_blob=True)
        case OtherTarget(str(repository)) if request.method in ("POST", "PUT"):
            blob = uploaded_digest(request.query)
            return None if blob is None else Change(repository, str(blob), is_blob=True)
    return None
