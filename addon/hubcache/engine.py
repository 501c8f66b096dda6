"""Builds the parts that work behind the hooks, and keeps house while they do."""

import asyncio
import contextlib
import logging
import resource
import ssl
import time
from collections.abc import Callable

from .decide.throttle import Throttle
from .oci.errors import NotStored, StorageError, StoreTooNew
from .oci.registry import HUB_HOST, Registry
from .operate.access_log import AccessLog
from .operate.metrics import Metrics
from .operate.options import Settings
from .operate.status import Status
from .operate.version import version
from .serve.access import Access
from .serve.best_effort import BestEffortWriter
from .serve.cached_blobs import CachedBlobs
from .serve.cached_manifests import CachedManifests
from .serve.cached_referrers import CachedReferrers
from .serve.messages import Answer, Change, Forward, Request, Result
from .serve.prefetch import Prefetch
from .serve.registry_service import RegistryService
from .serve.stored_only_mirror import StoredOnlyMirror
from .serve.tag_refresh import TICK_SECONDS, TagRefresh
from .serve.token_service import TokenService
from .store.scrub import Scrub
from .store.store import Store
from .transfer.active_bodies import ActiveBodies
from .transfer.body_delivery import BodyDelivery, log_broken_body
from .transfer.body_listener import BodyListener
from .transfer.breaker import CircuitBreakers
from .transfer.challenge import Challenge
from .transfer.fills import Fills
from .transfer.session import open_session
from .transfer.tokens import Tokens
from .transfer.upstream import Upstream
from .transfer.upstream_client import UpstreamClient

logger = logging.getLogger("hubcache")

_REOPEN_SECONDS = 30.0
_EXPIRE_SECONDS = 3600.0
_REPEAT_SECONDS = 600.0


class Engine:
    """Everything but mitmproxy. Lives in one event loop, from `start` to `close`."""

    def __init__(self, settings: Settings, tls: ssl.SSLContext) -> None:
        self.store = Store(settings.directory, settings.size)
        self.metrics = Metrics()
        active = ActiveBodies()
        self.body_delivery = BodyDelivery(active, self.metrics.sent, log_broken_body)
        self.body_listener = BodyListener(active, self.metrics.sent, log_broken_body)
        self._settings = settings
        self._tls = tls
        self.breakers = CircuitBreakers()
        self.metrics.watch(self.store, self.breakers)
        self._status = Status(self.store, self.metrics, self.breakers) if settings.status else None
        self._housekeeping: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._access_log: AccessLog | None = None
        self._scrub = Scrub(self.store, self.report_storage_error)
        self._throttle = Throttle(_REPEAT_SECONDS, time.monotonic)
        self._upstreams: dict[str, Upstream] = {}

    async def start(self) -> None:
        """Open store, session and listeners; raises `StoreTooNew` or `ConfigError`.

        A store that cannot be used is no reason not to start: pulls go on uncached, and it is tried again.
        """
        _allow_descriptors()
        try:
            self.store.open()
        except StorageError as error:
            self.report_storage_error(error)
        user_agent = f"hubcache/{version()}"
        self._http = open_session(self._tls, user_agent)
        self._guarded = open_session(self._tls, user_agent, guarded=True)
        self._client = UpstreamClient(self._http, self.metrics, self.breakers, self._guarded)
        self._tokens = Tokens(self._client)
        writer = BestEffortWriter(self.store, self.report_storage_error)
        self._writer = writer
        self._access = Access(self.store, writer)
        self.fills = Fills(self.store, self.metrics, self._fill_failed)
        self._manifests = CachedManifests(self.store, writer, self._access)
        self._referrers = CachedReferrers(self.store, writer, self._access, self._manifests)
        self._blobs = CachedBlobs(self.store, writer, self._access, self.fills)
        prefetch = Prefetch(self.store, self._manifests, self._blobs, self._referrers, self._may_spend)
        self._tag_refresh = TagRefresh(self.store, writer, self._manifests, prefetch, self._may_spend)
        self._mirror = StoredOnlyMirror(
            self.store, self._access, self._manifests, self._blobs, prefetch, self._may_spend
        )
        self.token_service = TokenService(self.store, self._client, self._tokens, self._upstreams)
        self.service = RegistryService(
            self.store,
            self._access,
            self._manifests,
            self._blobs,
            self._tag_refresh,
            self._mirror,
            self._referrers,
            self._upstreams,
        )
        self.apply(self._settings)
        await self.body_listener.start()
        if self._status is not None and self._settings.status is not None:
            await self._status.start(*self._settings.status)
        self._housekeeping = asyncio.create_task(self._keep_house())
        self._scrub.start()

    def apply(self, settings: Settings) -> None:
        """Take over option values, at start and while running."""
        self._settings = settings
        self.store.changed()
        rooms, retention = self.store.rooms, self.store.rooms.retention
        rooms.capacity, rooms.max_blob, rooms.min_free = settings.size, settings.max_blob, settings.min_free
        retention.admit_after, retention.half_life = settings.admit_after, settings.half_life
        retention.expire_after = settings.expire_after
        self.store.pins = settings.pins
        self._scrub.period = settings.scrub.period if settings.scrub else None
        self._scrub.rate = settings.scrub.rate if settings.scrub else None
        self._client.offline = settings.offline
        self._manifests.tag_lifetime = settings.tag_ttl
        self._manifests.max_stale = self._access.max_stale = settings.max_stale
        self._access.negative_ttl = settings.negative_ttl
        if settings.access_log is None:
            self._access_log = None
        elif self._access_log is None or self._access_log.path != settings.access_log:
            self._access_log = AccessLog(settings.access_log)
        self._mirror.admit_after, self._mirror.half_life = settings.admit_after, settings.half_life
        self._manifests.while_revalidate = settings.while_revalidate
        self._tag_refresh.enabled = (
            settings.sync and settings.sync_rate > 0 and settings.tag_ttl > 0 and not settings.offline
        )
        self.service.authorize, self.service.stored_only = settings.authorize, settings.offer_only
        self._apply_registries(settings)
        self._tag_refresh.apply(
            settings.sync_rate, {each.host: self._upstreams[each.host] for each in settings.registries}
        )

    def _apply_registries(self, settings: Settings) -> None:
        """Add and replace upstreams. One that stays keeps what it knows: a pause that the registry asked for is none
        of the option's business that happened to change. One that is configured no more stays, too, for the requests
        under way; no new ones come for it."""
        for registry in settings.registries:
            account = settings.account if registry.is_hub else None
            known = self._upstreams.get(registry.host)
            if known is not None and known.registry == registry:
                known.account = account
            else:
                self._upstreams[registry.host] = Upstream(registry, self._client, self._tokens, self._learned, account)

    async def answer(self, request: Request) -> Answer | Forward | None:
        """Answer a request, or say how to pass it on, and count it; None when its body is needed for that."""
        outcome: Answer | Forward
        if request.to_token_service or self.token_service.serves(request):
            if request.method == "POST" and request.body is None:
                return None
            outcome = await self.token_service.answer(request)
        else:
            outcome = await self.service.answer(request)
            if request.attempt:  # the first was counted
                return outcome
            if self._access_log is not None:
                self._access_log.add(time.time(), request, outcome)
        result = Result.BYPASS if isinstance(outcome, Forward) else outcome.result
        self.metrics.answered(outcome.kind, result.value, request.listener.value)
        return outcome

    def count_repeats(self, request: Request, answer: Answer, count: int) -> None:
        """A worker gave an answer of a moment ago so many times: count it as if it had been given here."""
        self.service.count_repeats(request, answer)
        self.metrics.answered(answer.kind, answer.result.value, request.listener.value, count)
        if self._access_log is not None:
            for _ in range(count):
                self._access_log.add(time.time(), request, answer)

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call this when an answer that was right may be so no more."""
        self.store.changed = changed

    def count_sent(self, source: str, count: int) -> None:
        """Body bytes went to a client, by whatever process."""
        self.metrics.sent(source, count)

    async def content_changed(self, registry: Registry, moved: Change, subject: str | None = None) -> None:
        """A push or a delete through the proxy was accepted; `subject` is the answer's `OCI-Subject`."""
        await self.service.content_changed(registry, moved, subject)

    def _may_spend(self, host: str) -> bool:
        """Whether the rate limit, as last seen, leaves more than the reserve for clients, and no 429 said to pause."""
        upstream = self._upstreams.get(host)
        if upstream is None or upstream.is_rate_limited("manifest", ""):
            return False
        has_account = self._settings.account is not None and host == HUB_HOST
        remaining = self.metrics.remaining(host, "account" if has_account else "anonymous")
        return remaining is None or remaining > self._settings.ratelimit_reserve

    def report_storage_error(self, error: StorageError) -> None:
        """Say once in a while that content cannot be stored; that the policy does not want it is no news."""
        if isinstance(error, NotStored):
            return
        if self._throttle.permits(str(error).partition(":")[0]):  # after it comes a file's name, say
            logger.warning("hubcache: not storing, pulls go on uncached: %s", error)

    def _fill_failed(self, error: StorageError) -> None:
        if not isinstance(error, NotStored):
            self.store.failed(error)
        self.report_storage_error(error)

    def _learned(self, registry: Registry, challenge: Challenge) -> None:
        """Remember a challenge, in the background: whoever triggered it need not wait."""
        task = asyncio.create_task(self._writer.put_challenge(registry.host, challenge.render()))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _keep_house(self) -> None:
        """Every few seconds: keep tags in step, write popularity behind, shrink to a lowered cap, try to open a store
        that could not be opened, remove what is over its time."""
        opened_at = expired_at = time.monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            self._tag_refresh.tick()
            if self._access_log is not None:
                self._access_log.flush()
            try:
                if not self.store.is_open and now - opened_at >= _REOPEN_SECONDS:
                    opened_at = now
                    self.store.open()
                    logger.info("hubcache: the store can be used again")
                if self.store.is_open:
                    await self.store.keep_house()
                    if now - expired_at >= _EXPIRE_SECONDS:
                        expired_at = now
                        await self.store.expire()
            except StorageError as error:
                self.report_storage_error(error)
            except StoreTooNew as error:
                logger.warning("hubcache: %s", error)

    async def stop_background_work(self) -> None:
        """Give up what runs ahead of clients: the stop has begun."""
        self._tag_refresh.enabled = False
        await self._tag_refresh.close()
        await self._mirror.close()

    def cancel_unread(self) -> None:
        """Cancel fills for which no client is waiting."""
        self.fills.cancel_unread()

    async def close(self) -> None:
        """Stop everything, fills included; staged content is given up."""
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeping
        if self._access_log is not None:
            self._access_log.flush()
        await self._scrub.close()
        await self._tag_refresh.close()
        await self._mirror.close()
        await self.body_listener.close()
        await self.body_delivery.close()
        await self.fills.close()
        await self.breakers.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._guarded.close()
        await self._http.close()
        if self._status is not None:
            await self._status.close()
        try:
            await self.store.close()
        except StorageError as error:
            self.report_storage_error(error)


def _allow_descriptors() -> None:
    """As many as the system permits, for this process and its workers: a transfer takes four, and the usual limit of
    1024 is there for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
