"""mitmproxy's hooks, and nothing else: what arrives becomes a `Request`, what `Service` says becomes the flow."""

import asyncio
import gc
import logging
import os
import ssl
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
from mitmproxy import addonmanager, ctx, exceptions, http
from mitmproxy.net.http import http1
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.utils import human

from .connection_hooks import ConnectionHooks
from .engine import Engine
from .mitm import credentials, flow_headers, http1_server, listeners
from .mitm.interception import Interception, Place
from .oci.errors import ConfigError, ContentTooLarge, ManifestUnknown, StoreTooNew
from .operate import options
from .operate.ca import ensure_ca
from .operate.line_buffering import print_whole_lines
from .operate.options import Settings
from .serve.errors import error_answer
from .serve.messages import MAX_SMALL_BODY, Answer, Forward, Listener, Request, Result
from .shutdown import Shutdown, ignore_hangup
from .transfer.body_listener import StreamedBody
from .workers.owner_client import OwnerClient
from .workers.supervisor import OWNER, Supervisor, inherited, worker_command

logger = logging.getLogger("hubcache")

CERTS = Path(__file__).resolve().parents[2] / "certs"
PROXY_PORT, MIRROR_PORT = 8080, 5000
_LEAF_SECONDS = 86400.0
_MARKS = {
    Result.HIT: ":heavy_check_mark:",
    Result.REVALIDATED: ":heavy_check_mark:",
    Result.STALE: ":hourglass:",
    Result.MISS: ":arrow_down:",
    Result.BYPASS: ":key:",
}
"""How mitmweb marks flows, so that hits are seen at a glance and can be filtered (`~marker`)."""


class Hubcache:
    """The addon."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._interception = Interception(())
        self._connections = ConnectionHooks([self])
        self.addons = [self._connections]
        self._engine: Engine | OwnerClient | None = None
        self._supervisor: Supervisor | None = None
        self._stop = Shutdown()
        self._ready = asyncio.Event()
        self._deliveries: dict[str, tuple[Answer, StreamedBody, http.Request]] = {}
        self._forwards: dict[str, tuple[Place, Forward, str | None]] = {}
        """With what the client presented as `Authorization`."""
        self._token_requests: dict[str, Request] = {}
        self._leaf_timer: asyncio.TimerHandle | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    def load(self, loader: addonmanager.Loader) -> None:
        """Declare the options, and give mitmproxy's own the defaults that a registry cache needs."""
        print_whole_lines()
        listeners.without_quic(ctx.options.mode)  # at once: mitmproxy is about to open those of the command line
        options.declare(loader)
        try:
            options.check_names(ctx.options.deferred)
            options.convert_config_file(ctx.options.deferred)
            ctx.options.process_deferred()
        except (ConfigError, exceptions.OptionsError) as error:
            # An exception would be lost: mitmproxy loads scripts in a task of their own.
            logger.error("hubcache: %s", error)
            return
        _default(
            connection_strategy="lazy",  # a CONNECT must not dial upstream: it would fail in an outage
            upstream_cert=False,
            http2=False,  # several times slower than HTTP/1.1 inside mitmproxy
        )

    def configure(self, updated: set[str]) -> None:
        """Check options: at start an error ends the program, later it is refused and nothing changes."""
        relevant = any(name.startswith("hubcache_") for name in updated) or {"mode", "confdir"} & updated
        if not relevant:
            return
        try:
            self._configure()
        except ConfigError as error:
            if self._engine is not None:
                raise exceptions.OptionsError(str(error)) from error
            logger.error("hubcache: %s", error)

    def _configure(self) -> None:
        settings = Settings.parse(ctx.options)
        interception = Interception(settings.registries)
        previous = self._settings
        if previous is not None and self._engine is not None:
            previous.check_change_to(settings)
        confdir = CERTS if _is_default("confdir") else Path(ctx.options.confdir).expanduser()
        warning = ensure_ca(confdir, interception.hosts, datetime.now(UTC)).warning
        _default(confdir=str(CERTS))  # not before: where mitmproxy finds no CA it makes one of its own, for every site
        if warning and previous is None and OWNER not in os.environ:
            logger.warning("hubcache: %s", warning)
        self._settings, self._interception = settings, interception
        self._connections.intercept(interception)
        self._connections.guard.apply(settings, interception, _ports(settings))
        if isinstance(self._engine, Engine):
            self._engine.apply(settings)
        host = settings.registries[0].host
        _default(
            mode=[
                f"regular@{PROXY_PORT}" if _is_default("listen_port") else "regular",
                f"reverse:https://{host}@{MIRROR_PORT}",
            ]
        )
        for mode in map(ProxyMode.parse, ctx.options.mode):
            if isinstance(mode, ReverseMode) and not interception.serves(mode):
                raise ConfigError(f"mode {mode.full_spec}: {mode.address[0]} is not in hubcache_registries")
        listeners.without_quic(ctx.options.mode)
        _default(allow_hosts=interception.allow_hosts)

    async def running(self) -> None:
        """Start what works behind the hooks, and say where everything is."""
        if self._settings is None or self._engine is not None:
            return
        ignore_hangup()
        doorkeeper = ctx.master.addons.get("proxyserver")
        # mitmproxy may have read its modes before this script was loaded: open what is missing. It says what it cannot.
        if not await doorkeeper.setup_servers():
            return
        try:
            owner = inherited()
            if owner is None:
                await self._start(self._settings, tuple(doorkeeper.servers))
            else:
                self._engine = await OwnerClient.connect(*owner, self._owner_lost)
                self._connections.receive(doorkeeper.servers, self._engine)
        except (ConfigError, StoreTooNew) as error:
            logger.error("hubcache: %s", error)
            return
        self._ready.set()
        self._renew_leaves()
        gc.freeze()  # what lives as long as we do need not be walked by each collection

    async def _start(self, settings: Settings, servers: tuple[ServerInstance[Any], ...]) -> None:
        engine = await Engine.start(settings, _tls_context())
        self._engine = engine
        self._say_where(settings, engine, servers)
        workers = _workers(settings)
        if workers > 1:
            shared = listeners.take_from(servers)
            sockets = [listener for each in shared.values() for listener in each]
            self._supervisor = Supervisor(
                worker_command(),
                workers,
                sockets,
                listeners.environment(shared),
                engine,
                engine.metrics.workers_changed,
            )
            await self._supervisor.start()
            logger.info("hubcache: %d workers", workers)
        else:
            self._connections.receive(servers, engine)

    @staticmethod
    def _say_where(settings: Settings, engine: Engine, servers: Iterable[ServerInstance[Any]]) -> None:
        for server in servers:
            kind = "mirror" if isinstance(server.mode, ReverseMode) else "proxy"
            where = ", ".join(human.format_address(address) for address in server.listen_addrs[:1])
            logger.info("hubcache: %s at %s", kind, where)
        store = engine.store
        logger.info("hubcache: CA certificate %s", Path(ctx.options.confdir).expanduser() / "mitmproxy-ca-cert.pem")
        used, capacity = human.pretty_size(store.usage.used), human.pretty_size(store.capacity.max_bytes)
        logger.info("hubcache: store %s, %s of %s used", store.directory, used, capacity)
        if settings.status is not None:
            logger.info("hubcache: status at http://%s", human.format_address(settings.status))

    def _renew_leaves(self) -> None:
        """Have leaf certificates made anew each day: mitmproxy keeps them for ever, but they expire after 199 days."""
        self._connections.renew()
        self._leaf_timer = asyncio.get_running_loop().call_later(_LEAF_SECONDS, self._renew_leaves)

    def _owner_lost(self) -> None:
        """End this worker, without a word to its clients: all that it has comes from the owner."""
        self._stop.hurry()
        ctx.master.shutdown()

    async def done(self) -> None:
        """Stop, when the clients that are being served have all, or `hubcache_stop_within` is over.

        mitmproxy calls this while its connections are still open; it ends them when this returns.
        """
        if self._leaf_timer:
            self._leaf_timer.cancel()
        if self._engine is None or self._settings is None:
            return
        within = self._settings.stop_within
        if isinstance(self._engine, OwnerClient):
            await self._stop.worker(self._connections, self._engine, within)
        else:
            self._stop.hurry_at_signal()
            if self._supervisor is None:
                await self._stop.alone(self._connections, self._engine, within)
            else:
                await self._stop.owner(self._connections, self._engine, self._supervisor, within)
        await self._engine.close()
        self._engine = None

    # -- flows ----------------------------------------------------------------------------------------------------

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Decide what happens to a request, before its body."""
        self._connections.guard.asked(flow)
        if flow.response or flow.error or not flow.live:
            return
        place = self._interception.place(flow)
        if place is None:
            self._pass_through(flow)
            return
        await self._ready.wait()
        assert self._engine is not None
        path, _, query = flow.request.path.partition("?")
        request = place.request(
            method=flow.request.method,
            path=path,
            query=query,
            headers=flow.request.headers,
            client=flow.client_conn.peername[0] if flow.client_conn.peername else "",
        )
        credentials.hide(flow.request)
        outcome = self._connections.decided(flow.client_conn) or await self._engine.answer(request)
        if outcome is None:
            length = http1.expected_http_body_size(flow.request)
            if length is None or length > MAX_SMALL_BODY:
                too_large = ContentTooLarge(f"a token request has a length, of at most {MAX_SMALL_BODY} bytes")
                outcome = error_answer(too_large, request.method)
        if outcome is None:
            self._token_requests[flow.id] = request  # answered in `request`, when its body is here
            return
        self._act(flow, place, outcome, request.headers.get("authorization"))

    async def request(self, flow: http.HTTPFlow) -> None:
        """The body of a token request (OAuth2, with a password or a refresh token) is here: answer it, keep nothing."""
        request = self._token_requests.pop(flow.id, None)
        place = self._interception.place(flow)
        if request is None or place is None or self._engine is None or not flow.live:
            return
        body, flow.request.content = flow.request.content or b"", b""
        outcome = await self._engine.answer(replace(request, body=body))
        assert outcome is not None
        self._act(flow, place, outcome)

    def _act(self, flow: http.HTTPFlow, place: Place, outcome: Answer | Forward, presented: str | None = None) -> None:
        result = Result.BYPASS if isinstance(outcome, Forward) else outcome.result
        flow.marked = _MARKS.get(result, "")
        if isinstance(outcome, Forward):
            self._forward(flow, place, outcome, presented)
        else:
            flow.comment = outcome.headers.get("Cache-Status", "")
            self._answer(flow, outcome)

    def _pass_through(self, flow: http.HTTPFlow) -> None:
        """Not ours: a plain-http request through the proxy, or a mirror request for a namespace nobody configured."""
        if isinstance(flow.client_conn.proxy_mode, ReverseMode):
            credentials.hide(flow.request)
            self._answer(
                flow, error_answer(ManifestUnknown("this mirror does not serve that namespace"), flow.request.method)
            )
        else:
            own = flow.request.headers.get("authorization")
            credentials.hide(flow.request)
            credentials.send(flow.request, own)
            flow.request.stream = True

    def _answer(self, flow: http.HTTPFlow, answer: Answer) -> None:
        http1_server.drop_body(flow.request)
        if answer.source is None:
            flow.response = flow_headers.response(answer)
            return
        assert self._engine is not None
        path, delivery = self._engine.body_listener.register(answer.source)
        self._deliveries[flow.id] = (answer, delivery, flow.request)
        flow.request = flow.request.copy()  # mitmproxy goes by the original's headers when it keeps the connection
        flow.request.scheme, flow.request.host, flow.request.port = "http", "127.0.0.1", self._engine.body_listener.port
        flow.request.path = path
        flow.request.headers.clear()
        self._connections.guard.aim(flow)

    def _forward(self, flow: http.HTTPFlow, place: Place, forward: Forward, presented: str | None) -> None:
        """Point a flow at the upstream, with nothing but the client's own credentials (or our anonymous token)."""
        upstream = urlsplit(place.registry.upstream)
        flow.request.scheme = upstream.scheme
        flow.request.host = upstream.hostname or ""
        flow.request.port = upstream.port or (443 if upstream.scheme == "https" else 80)
        flow.request.stream = True
        self._connections.guard.aim(flow)
        credentials.send(flow.request, forward.authorization)
        self._forwards[flow.id] = (place, forward, presented)

    def responseheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """A body from the body listener gets its real headers and the flow its real address; what passes through is
        streamed. A tag that was pushed is forgotten before the client hears that it was."""
        assert flow.response is not None
        delivered = self._deliveries.get(flow.id)
        if delivered is not None:
            answer, delivery, flow.request = delivered
            # A new response: mitmproxy's client side goes on reading by the headers of the one that it sent.
            flow.response = flow_headers.response(answer)
            flow.response.content = None
            flow.response.stream = delivery.stream
            return None
        flow.response.stream = True
        place, forward, presented = self._forwards.pop(flow.id, (None, None, None))
        if place is None or forward is None:
            return None
        proxied, sent = place.listener is Listener.PROXY, forward.authorization
        flow_headers.adapt_forwarded(flow.response, place.registry, proxied=proxied, presented=presented, sent=sent)
        credentials.hide_signature(flow.response)
        if self._engine is None or forward.change is None or flow.response.status_code >= 300:
            return None
        return self._engine.content_changed(place.registry, forward.change, flow.response.headers.get("oci-subject"))

    def response(self, flow: http.HTTPFlow) -> None:
        """A flow is complete."""
        self._deliveries.pop(flow.id, None)

    async def error(self, flow: http.HTTPFlow) -> None:
        """A flow broke off: its client left, or its body could not be had."""
        self._forwards.pop(flow.id, None)
        self._token_requests.pop(flow.id, None)
        _, delivery, _ = self._deliveries.pop(flow.id, (None, None, None))
        if delivery is not None:
            await delivery.close()


def _workers(settings: Settings) -> int:
    """How many processes to start: several cannot show their flows in one window or write them into one file."""
    if settings.workers > 1:
        if ctx.master.addons.get("dumper") is None:  # not mitmdump
            logger.warning("hubcache: one worker only: flows are shown where there is one process")
            return 1
        if ctx.options.save_stream_file or ctx.options.hardump:
            logger.warning("hubcache: one worker only: flows are saved to a file")
            return 1
    return settings.workers


def _ports(settings: Settings) -> list[int]:
    """Those that this program listens on, beside the body listener, which is at loopback."""
    listeners = [ProxyMode.parse(mode).listen_port(ctx.options.listen_port) for mode in ctx.options.mode]
    return [port for port in (*listeners, settings.status and settings.status[1]) if port]


def _is_default(name: str) -> bool:
    return bool(getattr(ctx.options, name) == ctx.options.default(name))


def _default(**values: object) -> None:
    """Set mitmproxy options that the user did not set."""
    unset = {name: value for name, value in values.items() if _is_default(name)}
    if unset:
        ctx.options.update(**unset)


def _tls_context() -> ssl.SSLContext:
    """Trust for the cache's own connections, by mitmproxy's options for its connections."""
    context = ssl.create_default_context(
        cafile=ctx.options.ssl_verify_upstream_trusted_ca or certifi.where(),
        capath=ctx.options.ssl_verify_upstream_trusted_confdir,
    )
    if ctx.options.ssl_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
