"""mitmproxy's hooks about protocol layers and TLS, for the tested versions of mitmproxy: clients that bypass it, wholly
or in part."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from weakref import WeakKeyDictionary

from mitmproxy import addonmanager, ctx, tls
from mitmproxy.connection import Client
from mitmproxy.proxy import layer
from mitmproxy.proxy.mode_specs import ReverseMode
from OpenSSL import SSL

from .clients.draining import ClientGroup, ClientGroups
from .clients.limits import ClientLimits
from .direct.acceptor import DirectAcceptor
from .direct.dependencies import DirectDependencies
from .direct.eligibility import Eligibility
from .mitm import handover, http1_server, listeners, proxied_tunnel, proxyserver
from .mitm.handled_clients import HandledClients
from .mitm.interception import Interception
from .mitm.mirror_tls import MirrorTlsAdvice
from .mitm.other_addons import OtherAddons
from .mitm.streams import Server
from .mitm.tls import TlsContexts, load_mirror_certificate
from .mitm.tunnel import Connects
from .operate.served_request import RecordingResponder
from .public_hooks import PublicConnectionHooks
from .serve.messages import Forward


class ConnectionHooks(PublicConnectionHooks):
    """mitmproxy's connection hooks.

    `limits` counts direct connections. `outbound_proxy` returns the one for a client's tunnel, if any.
    """

    def __init__(self, limits: ClientLimits, outbound_proxy: proxied_tunnel.FindProxy) -> None:
        super().__init__()
        self._outbound_proxy = outbound_proxy
        self.addons = []
        self._limits = limits
        self._direct_clients = ClientGroup()
        self._interception = Interception(())
        self._connects = Connects(self._interception)
        self._mirror_tls = MirrorTlsAdvice()
        self._mirror_context: SSL.Context | None = None
        self._decisions: WeakKeyDictionary[Client, Forward] = WeakKeyDictionary()

    @property
    def is_draining(self) -> bool:
        """Whether the stop has begun."""
        return self._direct_clients.is_draining

    # -- life -----------------------------------------------------------------------------------------------------

    def load(self, _: addonmanager.Loader) -> None:
        """Find mitmproxy's parts."""
        handled = HandledClients(proxyserver.connection_handlers())
        self.clients = ClientGroups((self._direct_clients, handled))
        self._eligibility = Eligibility(ctx.options, OtherAddons(ctx.master.addons))
        self._acceptor = DirectAcceptor(self._eligibility, self._dependencies)
        self._forget_tls_contexts()

    def configure(self, _: set[str]) -> None:
        """Check all options again: one of them has changed."""
        self._eligibility.options_changed()
        self._forget_tls_contexts()

    def intercept(self, interception: Interception) -> None:
        """Serve these registries from now on."""
        self._interception = interception
        self._connects = Connects(interception)
        self._eligibility.intercept(interception)
        self._forget_tls_contexts()

    def use_mirror_certificate(self, path: Path | None) -> None:
        """Serve TLS at mirrors with the certificate in this file from now on; raises `ConfigError`."""
        self._mirror_context = load_mirror_certificate(path) if path is not None else None
        self._forget_tls_contexts()

    def serve(self, servers: Iterable[Server], responder: RecordingResponder) -> None:
        """Accept the clients of these servers, and have `responder` answer those that bypass mitmproxy."""
        self._limits.set_descriptors()  # the limit may have been raised
        self._responder = responder
        listeners.serve(servers, self._acceptor.protocol, self._limits)

    def renew_certificates(self) -> None:
        """Have leaf certificates made anew."""
        proxyserver.forget_leaf_certificates()
        self._forget_tls_contexts()

    def _forget_tls_contexts(self) -> None:
        get_leaf = ctx.master.addons.get("tlsconfig").get_cert
        self._tls_contexts = TlsContexts(self._interception, get_leaf, self._mirror_context)
        self._acceptor.options_changed()

    def _dependencies(self) -> DirectDependencies:
        return DirectDependencies(
            interception=self._interception,
            connects=self._connects,
            tls_contexts=self._tls_contexts,
            responder=self._responder,
            idle_seconds=float(ctx.options.tcp_timeout),
            log_answer=_echo if ctx.options.flow_detail else None,
            limits=self._limits,
            group=self._direct_clients,
        )

    # -- hooks ----------------------------------------------------------------------------------------------------

    def take_decision(self, client: Client) -> Forward | None:
        """Return and remove the decision about a client's next request that was made before mitmproxy took over."""
        return self._decisions.pop(client, None)

    def next_layer(self, data: layer.NextLayer) -> None:
        """Choose the first layer where mitmproxy is bypassed, and give HTTP layers the HTTP/1 server of this program.

        mitmproxy calls scripts before its own addon `nextlayer`, so where that addon has to choose, it is called here.
        """
        client = data.context.client
        state = handover.take_state(client, proxyserver.connection_handlers().get(client.id))
        if data.layer is None and state is not None:
            data.layer = handover.first_layer(data.context, state)
        if data.layer is None and self._eligibility.answers_connect(client.proxy_mode):
            data.layer = self._connects.first_layer(data)
        if data.layer is None:
            data.layer = proxied_tunnel.first_layer(data.context, self._interception, self._outbound_proxy)
        proxyserver.choose_layer(data)
        if state is not None and state.decision is not None:
            self._decisions[client] = state.decision
        if isinstance(client.proxy_mode, ReverseMode) and self._mirror_context is None:
            self._mirror_tls.watch(data.layer)
        if data.layer is not None:
            http1_server.install(data.layer)

    def tls_start_client(self, data: tls.TlsData) -> None:
        """Make the TLS connection, unless an addon or an option of the user concerns it."""
        if isinstance(data.context.client.proxy_mode, ReverseMode) and data.ssl_conn is None and not data.is_dtls:
            data.ssl_conn = self._tls_contexts.mirror_connection()
        if data.ssl_conn is None and self._eligibility.bypass.tls:
            data.ssl_conn = self._tls_contexts.connection_for_hello(data)


def _echo(line: str) -> None:
    """Print a line as mitmdump prints flows. If the output cannot be written any more, clients are still served."""
    with contextlib.suppress(OSError):
        ctx.master.addons.get("dumper").echo(line)
