"""Starts and stops the program: options, CA, listeners, engine and workers."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mitmproxy import addonmanager, contentviews, ctx, exceptions
from mitmproxy import version as mitmproxy_version
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode

from .access_hooks import AccessHooks
from .clients.limits import ClientLimits
from .engine import Engine
from .mitm import compat, mitmproxy_options, proxyserver
from .mitm.flow_limit import FlowLimit
from .mitm.flow_notes import FlowNotes
from .mitm.interception import Interception
from .mitm.manifest_view import ManifestContentview
from .mitm.outbound_proxies import find_outbound_proxies
from .mitm.terminal_log import TerminalLog
from .mitmproxy_commands import MitmproxyCommands
from .oci.errors import ConfigError, StoreTooNew
from .operate import config_file, environment, installation, options
from .operate.bad_requests import keep_bad_requests_out_of_log
from .operate.ca import CERTIFICATE_FILE, ensure_ca
from .operate.config_file import ConfigFile
from .operate.line_buffering import print_whole_lines
from .operate.memory_release import MemoryRelease, find_malloc_trim
from .operate.options import Settings
from .operate.process_facts import ProcessFacts
from .operate.service_manager import ServiceManager
from .plugin import FlowHooks
from .public_hooks import PublicConnectionHooks
from .setup.setup_pages import SetupPages
from .shutdown import Shutdown, on_signals
from .start_report import addresses, listen_addresses, log_addresses, log_store
from .workers.owner_client import OwnerClient
from .workers.owner_watch import OWNER
from .workers.supervisor import Supervisor, inherited, worker_command

logger = logging.getLogger("hubcache")

PROXY_PORT, MIRROR_PORT = 8080, 5000
_LEAF_SECONDS = 86400.0


class Hubcache:
    """The addon: mitmproxy's hooks about the life of the program. The other hooks are in addons inside of it."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._engine: Engine | OwnerClient | None = None
        self._supervisor: Supervisor | None = None
        self._shutdown = Shutdown()
        self._service_manager = ServiceManager({} if OWNER in os.environ else os.environ)
        self._addresses = ""
        self._ca_expires = datetime.max.replace(tzinfo=UTC)
        self._leaf_timer: asyncio.TimerHandle | None = None
        self._memory_release = MemoryRelease(find_malloc_trim())
        self._config_file: ConfigFile | None = None
        self._untested = compat.find_problem()
        """Why internals of mitmproxy and pyOpenSSL are not used, if so."""
        limits = ClientLimits()
        if self._untested is None:
            self._access = AccessHooks(limits, proxyserver.disconnect, proxyserver.set_address_of_open_connection)
        else:
            self._access = AccessHooks(limits)
        self._connections = self._connection_hooks(limits)
        self._notes = FlowNotes() if self._untested is not None else _notes_with_own_markers()
        self._access.on_refused = self._notes.refused
        self._flows = FlowHooks(self._access, self._notes, self._connections.take_decision)
        self._flow_limit = FlowLimit()
        self._manifest_view = ManifestContentview()
        self._commands = MitmproxyCommands()
        self.addons = [
            *(self._flows, self._connections, self._access),
            *(self._notes, self._flow_limit, self._commands, TerminalLog()),
        ]

    def _connection_hooks(self, limits: ClientLimits) -> PublicConnectionHooks:
        if self._untested is not None:
            return PublicConnectionHooks()
        from .connection_hooks import ConnectionHooks  # with an untested version, its imports may fail

        return ConnectionHooks(limits, self._access.tunnel_proxy)

    def load(self, loader: addonmanager.Loader) -> None:
        """Declare the options, and give mitmproxy's own the defaults that a registry cache needs."""
        print_whole_lines()
        keep_bad_requests_out_of_log()
        if self._untested is not None:
            whose = "its" if self._untested.startswith("mitmproxy ") else "mitmproxy's"
            logger.warning("hubcache: %s; serving through %s public hooks only", self._untested, whose)
        self._without_quic()  # at once: mitmproxy is about to open the listeners of the command line
        options.declare(loader)
        contentviews.add(self._manifest_view)
        try:
            options.check_names(ctx.options.deferred)
            options.convert_config_file(ctx.options.deferred)
            fixed = options.command_line_names(ctx.options.deferred)
            ctx.options.process_deferred()
            variables = environment.variables(os.environ, fixed)
            ctx.options.set(*environment.assignments(variables))
            self._load_config_file(ConfigFile.find(ctx.options, fixed | variables.keys()))
        except (ConfigError, exceptions.OptionsError) as error:
            # An exception would be lost: mitmproxy loads scripts in a task of their own.
            logger.error("hubcache: %s", error)
            return
        mitmproxy_options.set_defaults(
            connection_strategy="lazy",  # a CONNECT must not connect upstream: it would fail in an outage
            upstream_cert=False,
            http2=False,  # several times slower than HTTP/1.1 inside mitmproxy
            keep_host_header=True,  # the set-up pages contain the name by which the client reached the mirror
        )
        if "web_columns" in ctx.options:  # mitmweb: the comment says what became of a request
            mitmproxy_options.set_defaults(web_columns=["icon", "path", "method", "status", "size", "time", "comment"])

    def _load_config_file(self, file: ConfigFile) -> None:
        text = os.environ[config_file.TEXT] if OWNER in os.environ else file.read()
        ctx.options.update(**file.load(ctx.options, text))
        os.environ[config_file.TEXT] = text  # for the workers that this process may start
        self._config_file = file

    def _reload(self) -> None:
        if self._engine is not None:  # the program is not stopping
            self._service_manager.reloading()
            self._reload_config_file()
            self._service_manager.ready(self._addresses)

    def _reload_config_file(self) -> None:
        """Apply what changed in the config file. A file with an error changes nothing."""
        file = self._config_file
        if file is None or self._engine is None:  # the program is stopping
            return
        try:
            text = file.read()
            change = file.change_to(ctx.options, text)
            # The password may have changed in its file, which is read when an option is set.
            ctx.options.update(**{"hubcache_password_file": ctx.options.hubcache_password_file} | change.now)
        except (ConfigError, exceptions.OptionsError) as error:
            logger.error("hubcache: SIGHUP: nothing changed: %s", error)
            return
        file.accept(ctx.options, text)
        os.environ[config_file.TEXT] = text
        logger.info("hubcache: SIGHUP: %s: %s", file.path, change)
        if self._supervisor is not None:
            self._supervisor.reload()

    def _without_quic(self) -> None:
        if self._untested is None:
            from .mitm import listeners

            listeners.without_quic(ctx.options.mode)

    # -- options --------------------------------------------------------------------------------------------------

    def configure(self, updated: set[str]) -> None:
        """Check options: at start an error ends the program, later it is refused and nothing changes."""
        others = {"mode", "confdir", "upstream_auth"}
        relevant = any(name.startswith("hubcache_") for name in updated) or others & updated
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
        proxies = find_outbound_proxies(ctx.options, os.environ, mitmproxy_options.listening_ports())
        interception = Interception(settings.registries, settings.registry_patterns)
        previous = self._settings
        if previous is not None and self._engine is not None:
            previous.check_change_to(settings)
        certs = installation.ca_directory()
        confdir = certs if mitmproxy_options.is_default("confdir") else Path(ctx.options.confdir).expanduser()
        authority = ensure_ca(confdir, interception.hosts, datetime.now(UTC))
        self._ca_expires, warning = authority.expires, authority.warning
        mitmproxy_options.set_defaults(confdir=str(certs))  # else mitmproxy makes a CA, for every site
        if warning and previous is None and OWNER not in os.environ:
            logger.warning("hubcache: %s", warning)
        self._connections.use_mirror_certificate(settings.mirror_certificate)
        own_hosts = self._flows.interception.allow_hosts
        self._settings, self._flows.interception = settings, interception
        self._connections.intercept(interception)
        # The body listener is at loopback, which is refused anyway.
        ports = [*mitmproxy_options.listening_ports(), *(settings.status or ())[1:]]
        ports += [settings.peer_listen[1]] if settings.bucket else []
        self._notes.tag_lifetime, self._flow_limit.most = settings.tag_ttl, settings.max_flows
        self._access.apply(settings, interception, ports, proxies)
        if isinstance(self._engine, Engine):
            self._engine.use_proxies(proxies)
            self._engine.apply(settings)
        host = settings.registries[0].host
        mitmproxy_options.set_defaults(
            mode=[
                f"regular@{PROXY_PORT}" if mitmproxy_options.is_default("listen_port") else "regular",
                f"reverse:https://{host}@{MIRROR_PORT}",
            ]
        )
        for mode in map(ProxyMode.parse, ctx.options.mode):
            if isinstance(mode, ReverseMode) and not interception.serves(mode):
                raise ConfigError(f"mode {mode.full_spec}: {mode.address[0]} is not in hubcache_registries")
        self._without_quic()
        if ctx.options.allow_hosts in ([], own_hosts):
            ctx.options.update(allow_hosts=interception.allow_hosts)

    # -- start ----------------------------------------------------------------------------------------------------

    async def running(self) -> None:
        """Start the engine or connect to the owner, serve clients, and log all addresses."""
        if self._settings is None or self._engine is not None:
            return
        hangup = asyncio.Event()
        on_signals((signal.SIGHUP,), hangup.set)  # at once: by default, the signal would end the program
        # mitmproxy may have read its modes before this script was loaded. It logs what it cannot open.
        if not await proxyserver.open_listeners():
            logger.error("hubcache: choose other ports with scripts/serve --proxy-port N --mirror-port N")
            return
        servers = proxyserver.open_servers()
        self._addresses = ", ".join(addresses(servers))
        try:
            owner = inherited()
            if owner is None:
                self._engine = await self._start_engine(self._settings, servers)
            else:
                self._engine = await OwnerClient.connect(*owner, self._owner_lost)
                self._connections.serve(servers, self._engine)
        except (ConfigError, StoreTooNew) as error:
            logger.error("hubcache: %s", error)
            return
        self._flows.serve(self._engine)
        self._renew_leaves()
        on_signals((signal.SIGHUP,), self._reload)
        if hangup.is_set():
            self._reload_config_file()
        self._service_manager.ready(self._addresses)
        self._memory_release.start()
        gc.freeze()  # the garbage collector need not examine objects that live as long as the program

    async def _start_engine(self, settings: Settings, servers: tuple[Any, ...]) -> Engine:
        proxies = find_outbound_proxies(ctx.options, os.environ, mitmproxy_options.listening_ports())
        tls = mitmproxy_options.upstream_tls_context()
        engine = await Engine.start(settings, tls, _setup_pages(servers), proxies)
        self._manifest_view.is_stored, self._commands.commands = engine.store.has, engine.control.commands
        self._engine = engine  # set now, so that `done` stops it also if the start of workers fails
        log_addresses(settings, servers, ctx.options.confdir)
        engine.metrics.ca_expires(self._ca_expires)
        engine.report.process = self._process_facts(settings, servers)
        count = self._worker_count(settings)
        if count > 1:
            self._supervisor = _make_supervisor(count, servers, engine)  # set first, so that `done` stops them
            await self._supervisor.start()
            logger.info("hubcache: %d workers", count)
        else:
            self._connections.serve(servers, engine)
        log_store(engine.store)  # last, because it may be a warning
        return engine

    def _process_facts(self, settings: Settings, servers: tuple[Any, ...]) -> ProcessFacts:
        return ProcessFacts(
            listen_addresses(settings, servers),
            Path(ctx.options.confdir).expanduser() / CERTIFICATE_FILE,
            None if self._config_file is None else self._config_file.path,
            mitmproxy_version.VERSION,
            self._untested,
        )

    def _worker_count(self, settings: Settings) -> int:
        """Return the number of processes: several cannot show their flows in one window or write them to one file."""
        if settings.workers > 1:
            reason = None
            if self._untested is not None:
                reason = "several share listeners, which mitmproxy's public hooks do not permit"
            elif ctx.master.addons.get("dumper") is None:  # not mitmdump
                reason = "flows are shown where there is one process"
            elif ctx.options.save_stream_file or ctx.options.hardump:
                reason = "flows are saved to a file"
            if reason is not None:
                logger.warning("hubcache: one worker only: %s", reason)
                return 1
        return settings.workers

    def _renew_leaves(self) -> None:
        """Renew leaf certificates each day: mitmproxy keeps them forever, but they expire after 199 days."""
        self._connections.renew_certificates()
        self._leaf_timer = asyncio.get_running_loop().call_later(_LEAF_SECONDS, self._renew_leaves)

    # -- stop -----------------------------------------------------------------------------------------------------

    def _owner_lost(self) -> None:
        """End this worker, which cannot receive from its owner: all that it serves comes from there."""
        os.kill(os.getpid(), signal.SIGKILL)

    async def done(self) -> None:
        """Stop once all running downloads have ended, or `hubcache_stop_within` is over.

        mitmproxy calls this while its connections are still open, and closes them when it returns.
        """
        if self._leaf_timer:
            self._leaf_timer.cancel()
        self._memory_release.stop()
        if self._engine is None or self._settings is None:
            return
        clients, within = self._connections.clients, self._settings.stop_within
        self._service_manager.stopping(within)
        if isinstance(self._engine, OwnerClient):
            await self._shutdown.stop_worker(clients, self._engine, within)
            # A service manager and the owner may both send a signal: the second would find the event loop half closed.
            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, signal.SIG_IGN)
        else:
            self._shutdown.end_wait_at_signal()
            if self._supervisor is None:
                await self._shutdown.stop_single(clients, self._engine, within)
            else:
                await self._shutdown.stop_owner(self._engine, self._supervisor, within)
        self._commands.stop()
        await self._engine.close()
        self._service_manager.close()
        self._engine = None
        self._flows.stop()
        self._manifest_view.is_stored = None


def _notes_with_own_markers() -> FlowNotes:
    from .mitm import flow_display  # with an untested version, its imports may fail

    flow_display.show_streamed_sizes()
    return FlowNotes(flow_display.add_markers())


def _make_supervisor(count: int, servers: tuple[Any, ...], engine: Engine) -> Supervisor:
    """Return the supervisor of `count` workers that share the listeners of `servers`."""
    from .mitm import listeners

    sockets = listeners.take_sockets(servers)
    return Supervisor(
        worker_command(installation.script("worker.py")),
        count,
        [each for of_mode in sockets.values() for each in of_mode],
        listeners.environment(sockets),
        engine,
        engine.metrics.workers_changed,
    )


def _setup_pages(servers: Iterable[Any]) -> SetupPages:
    """Return the set-up pages with the ports of the first mirror and of the first proxy."""
    ports = [(isinstance(server.mode, ReverseMode), server.listen_addrs[0][1]) for server in servers]
    mirror = next((port for is_mirror, port in ports if is_mirror), MIRROR_PORT)
    proxy = next((port for is_mirror, port in ports if not is_mirror), PROXY_PORT)
    return SetupPages(Path(ctx.options.confdir).expanduser() / "mitmproxy-ca-cert.pem", mirror, proxy)
