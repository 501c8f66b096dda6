"""Builds the parts of the cache, applies option values to them, and answers requests."""

import ssl
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from . import fleet_builder
from .control.control import Control
from .control.parts import Parts
from .decide.outbound_proxy import OutboundProxies
from .housekeeping import Housekeeping, open_store
from .oci.account import Account
from .oci.errors import ConfigError, ManifestUnknown, NotStored, StorageError, Unavailable
from .oci.registry import Registry
from .operate.descriptor_limit import raise_descriptor_limit
from .operate.metrics import Metrics
from .operate.options import Settings
from .operate.pulls import Pulls
from .operate.request_recorder import RequestRecorder
from .operate.served_request import ServedRequest
from .operate.status import Status
from .operate.status_page import StatusPages
from .operate.status_report import StatusReport
from .operate.storage_error_log import StorageErrorLog
from .operate.version import version
from .rate_limit_reserve import RateLimitReserve
from .serve.access import Access
from .serve.answer_cache import AnswerCache, RecentAnswer
from .serve.best_effort import BestEffortWriter
from .serve.cached_blobs import CachedBlobs
from .serve.cached_manifests import CachedManifests
from .serve.cached_referrers import CachedReferrers
from .serve.challenge_writer import ChallengeWriter
from .serve.content_service import ContentService
from .serve.errors import error_answer
from .serve.layers_ahead import LayersAhead
from .serve.manifest_validation import ManifestValidation
from .serve.messages import Answer, Change, Forward, Request
from .serve.prefetch import Prefetch
from .serve.registry_service import RegistryService
from .serve.small_bodies import read_small_body
from .serve.stored_manifests import StoredManifests
from .serve.stored_only_mirror import StoredOnlyMirror
from .serve.tag_refresh import TagRefresh
from .serve.token_service import TokenService
from .setup.setup_pages import SetupPages
from .store.scrub import Scrub
from .transfer import token_wait
from .transfer.active_bodies import ActiveBodies
from .transfer.body_delivery import BodyDelivery, log_broken_body
from .transfer.body_listener import BodyListener
from .transfer.breaker import CircuitBreakers
from .transfer.fills import Fills
from .transfer.upstream import Upstream
from .transfer.upstream_clients import UpstreamClients
from .transfer.upstreams import Upstreams

if TYPE_CHECKING:
    from .fleet.connection import FleetConnection


class Engine:
    """The cache without mitmproxy: answers requests and keeps stored content up to date.

    Lives in one event loop, from `start` to `close`.
    """

    def __init__(
        self,
        settings: Settings,
        tls: ssl.SSLContext,
        setup: SetupPages,
        connection: "FleetConnection | None" = None,
    ) -> None:
        """Build all parts and open the store; for `start`, which calls it in the event loop."""
        self._settings = settings
        self._setup = setup
        self._storage_errors = StorageErrorLog()
        self._upstreams = Upstreams(self._open_upstream, self._apply_tag_refresh)
        self.store = open_store(settings.directory, settings.size, self._storage_errors.report)
        self.metrics = Metrics()
        self.pulls = Pulls(self.metrics.pull_ended)
        self._changes = 0
        """How often cached answers became invalid."""
        self._answers = AnswerCache(lambda: self._changes)
        self._on_change: Callable[[], None] = lambda: None
        self.store.index.on_change = self._changed
        active = ActiveBodies()
        self.body_delivery = BodyDelivery(active, self.metrics.sent, log_broken_body)
        self.body_listener = BodyListener(active, self.metrics.sent, log_broken_body)
        self.breakers = CircuitBreakers()
        self.metrics.watch(self.store, self.breakers)
        self._clients = UpstreamClients(tls, f"hubcache/{version()}", self.metrics, self.breakers)
        self._scrub = Scrub(self.store, self._storage_errors.report)
        self.fills = Fills(self.store, self.metrics, self._fill_failed)
        self.report = StatusReport(self.store, self.metrics, self.breakers, self.pulls, self.fills.progress)
        self._recorder = RequestRecorder(self.metrics, self.pulls, self.report)
        pages = StatusPages(self.report, setup)
        self._status = Status(pages) if settings.status else None
        self._writer = writer = BestEffortWriter(self.store, self._storage_errors.report)
        self._challenges = ChallengeWriter(writer)
        self._access = Access(self.store, writer)
        stored = StoredManifests(self.store, writer, self._access)
        self._validation = validation = ManifestValidation(self.store, writer, self._access, stored)
        self._manifests = manifests = CachedManifests(self.store, self._access, stored, validation)
        self._referrers = CachedReferrers(self.store, writer, self._access, manifests)
        self._blobs = CachedBlobs(self.store, writer, self._access, self.fills)
        self._reserve = RateLimitReserve(self._upstreams, self.metrics)
        may_spend = self._reserve.may_spend
        prefetch = Prefetch(self.store, manifests, self._blobs, self._referrers, may_spend)
        self._tag_refresh = TagRefresh(self.store, writer, manifests, validation, prefetch, may_spend)
        self._mirror = StoredOnlyMirror(
            self.store, self._access, manifests, validation, self._blobs, prefetch, may_spend
        )
        self.token_service = TokenService(self.store, self._upstreams)
        self._layers_ahead = LayersAhead(self.store, self._blobs, prefetch.children)
        self._content = ContentService(
            *(self.store, manifests, self._blobs, self._referrers, self._tag_refresh, self._mirror),
            self._layers_ahead,
        )
        self.service = RegistryService(
            self.store, self._access, self._content, validation, self._blobs, self._referrers, self._upstreams
        )
        self._fleet = fleet_builder.build(
            *(connection, settings, self.store, self.fills, self._access, self._upstreams, self.service),
            *(self._blobs, self.report),
        )
        parts = Parts(
            *(self.store, self.fills, writer, self._access, manifests, self._blobs, self._referrers, prefetch),
            *(self._upstreams, may_spend, self.report, validation, self._reserve.remaining, self._fleet),
        )
        self.control = Control(parts)
        self._housekeeping = Housekeeping(
            *(
                self.store,
                self._tag_refresh,
                self.report.history,
                self.control.keep_open,
                self._recorder.flush_access_log,
            ),
            self._storage_errors.report,
        )
        self.apply(settings)

    @classmethod
    async def start(
        cls, settings: Settings, tls: ssl.SSLContext, setup: SetupPages, proxies: OutboundProxies | None = None
    ) -> Self:
        """Return an engine that answers requests; `tls` is for connections to registries, which go through `proxies`.

        Raises `StoreTooNew` for a store of a newer version, and `ConfigError` when an address or the bucket cannot be
        used.
        """
        raise_descriptor_limit()
        connection = await fleet_builder.connect(settings)
        with ExitStack() as unused:
            unused.callback(fleet_builder.disconnect, connection)
            engine = cls(settings, tls, setup, connection)
            unused.pop_all()
        engine.use_proxies(proxies or OutboundProxies())
        await engine.body_listener.start()
        try:
            if engine._status is not None and settings.status is not None:
                await engine._status.start(*settings.status)
            if engine._fleet is not None:
                await engine._fleet.start()
        except ConfigError:
            await engine.close()
            raise
        await engine.control.keep_open()
        engine.pulls.start()
        engine._housekeeping.start()
        engine._scrub.start()
        return engine

    def use_proxies(self, proxies: OutboundProxies) -> None:
        """Send requests through these outbound proxies from now on."""
        self._clients.use_proxies(proxies)

    def apply(self, settings: Settings) -> None:
        """Apply option values, at start and while running."""
        self._settings = settings
        self.store.index.on_change()
        self.store.apply(
            max_bytes=settings.size,
            max_blob=settings.max_blob,
            min_free=settings.min_free,
            admit_after=settings.admit_after,
            half_life=settings.half_life,
            expire_after=settings.expire_after,
            pins=settings.pins,
        )
        self._scrub.period = settings.scrub.period if settings.scrub else None
        self._scrub.rate = settings.scrub.rate if settings.scrub else None
        self._clients.set_offline(settings.offline)
        self._reserve.reserve, self._reserve.has_account = settings.ratelimit_reserve, settings.account is not None
        self._manifests.tag_lifetime = self._validation.tag_lifetime = settings.tag_ttl
        self._manifests.max_stale = self._access.max_stale = settings.max_stale
        self._access.negative_ttl = settings.negative_ttl
        self._recorder.use_access_log(settings.access_log)
        self._mirror.admit_after, self._mirror.half_life = settings.admit_after, settings.half_life
        self._manifests.while_revalidate = settings.while_revalidate
        self._tag_refresh.enabled = (
            settings.sync and settings.sync_rate > 0 and settings.tag_ttl > 0 and not settings.offline
        )
        self.service.authorize, self._content.stored_only = settings.authorize, settings.offer_only
        self._upstreams.configure(settings.registries, settings.registry_patterns)
        self.report.registries = [registry.host for registry in settings.registries]
        for upstream in self._upstreams.values():
            upstream.account = self._account(upstream.registry)
        self._apply_tag_refresh()
        if self._fleet is not None:
            self._fleet.apply(fleet_builder.times(settings))

    def _apply_tag_refresh(self) -> None:
        self._tag_refresh.apply(self._settings.sync_rate, self._upstreams.active)

    def _account(self, registry: Registry) -> Account | None:
        return self._settings.account if registry.is_hub else None

    def _open_upstream(self, registry: Registry) -> Upstream:
        client, tokens = self._clients.of(registry)
        account, open_upstream = self._account(registry), Upstream if self._fleet is None else self._fleet.upstream
        return open_upstream(registry, client, tokens, self._challenges.remember, account)

    async def answer(self, request: Request) -> Answer | Forward | None:
        """Count a request, and return its answer or how to forward it; None when its body must be received first.

        A small stored body that every client may read is in memory, see `small_bodies`.
        """
        page = self._setup.answer(request)
        if page is not None:
            return page
        if not request.attempt:
            self._recorder.began(request)
        changes, waited = self._changes, token_wait.begin()
        with ExitStack() as stack:
            try:
                stack.enter_context(self._upstreams.in_use(request.registry))
            except (ManifestUnknown, Unavailable) as error:
                return error_answer(error, request.method)
            recent = self._answers.get(request)
            if recent is not None:
                return self._repeat(request, recent)
            outcome = await self._answer(request)
        if outcome is not None:
            outcome.token_wait = waited[0]
        self._answers.put(request, outcome, changes)
        return outcome

    def _repeat(self, request: Request, recent: RecentAnswer) -> Answer:
        """Return a recent answer to another request, and count it as if it were a new one."""
        answer = recent.repeat()
        if answer.kind == "blob" and answer.body:
            self.metrics.sent("store", len(answer.body))
        if not request.attempt:  # the first attempt was counted
            self.count_repeats(request, answer, 1)
        return answer

    async def _answer(self, request: Request) -> Answer | Forward | None:
        outcome: Answer | Forward
        if request.to_token_service or self.token_service.serves(request):
            if request.method == "POST" and request.body is None:
                return None
            outcome = await self.token_service.answer(request)
        else:
            outcome = await self.service.answer(request)
            self._setup.count(request.client)
            if isinstance(outcome, Answer) and (count := await read_small_body(request, outcome)):
                self.metrics.sent("store", count)
            if request.attempt:  # the first attempt was counted
                return outcome
        self._recorder.answered(request, outcome)
        return outcome

    def request_ended(self, request: ServedRequest) -> None:
        """Record a request that ended, whichever process served it."""
        self._recorder.ended(request)

    def count_repeats(self, request: Request, answer: Answer, count: int) -> None:
        """Count an answer that was repeated `count` times to a client, as if it were a new one each time."""
        self.service.count_repeats(request, answer, count)
        if answer.kind != "token":
            self._setup.count(request.client, count)
        self._recorder.answered(request, answer, count)

    def count_sent(self, source: str, count: int) -> None:
        """Count body bytes that a worker process sent to clients; `source` is the `origin` of a `Source`."""
        self.metrics.sent(source, count)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call this when cached answers may now be invalid."""
        self._on_change = callback

    def _changed(self) -> None:
        self._changes += 1
        self._on_change()

    async def content_changed(self, registry: Registry, change: Change, subject: str | None = None) -> None:
        """Invalidate what an accepted push or delete changed; `subject` is the answer's `OCI-Subject`."""
        await self.service.content_changed(registry, change, subject)
        if self._fleet is not None:
            await self._fleet.content_changed(registry.host, *change, subject)

    def _fill_failed(self, error: StorageError) -> None:
        if not isinstance(error, NotStored):
            self.store.index.staging_failed(error)
        self._storage_errors.report(error)

    async def stop_background_work(self) -> None:
        """End tag refresh, prefetches and commands, when the shutdown has begun."""
        await self.control.close()
        self._tag_refresh.enabled = False
        await self._tag_refresh.close()
        await self._layers_ahead.close()
        await self._mirror.close()
        if self._fleet is not None:
            await self._fleet.stop_background_work()

    @property
    def is_uploading(self) -> bool:
        """Whether content is being uploaded to the bucket, or waits for that."""
        return self._fleet is not None and self._fleet.is_uploading

    def cancel_unread(self) -> None:
        """Cancel fills for which no client is waiting."""
        self.fills.cancel_unread()

    async def close(self) -> None:
        """Stop everything, fills included; what is in staging is discarded."""
        await self.body_listener.close()
        await self.body_delivery.close()
        self._recorder.flush()  # after the bodies that were cut off, whose requests are recorded, too
        await self.pulls.close()
        await self._housekeeping.close()
        await self.control.close()
        self._recorder.flush_access_log()
        await self._scrub.close()
        await self._tag_refresh.close()
        await self._layers_ahead.close()
        await self._mirror.close()
        await self.fills.close()
        if self._fleet is not None:
            await self._fleet.close()
        await self.breakers.close()
        await self._challenges.close()
        await self._clients.close()
        if self._status is not None:
            await self._status.close()
        try:
            await self.store.close()
        except StorageError as error:
            self._storage_errors.report(error)
