"""mitmproxy's hooks about connections: an addon inside of ours. What clients say in them is not its business."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import addonmanager, ctx, http, tls
from mitmproxy.connection import Client
from mitmproxy.proxy import layer
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ReverseMode

from .access_hooks import AccessHooks
from .clients.draining import ClientGroup, HandledClients
from .clients.limits import ClientLimits
from .direct import eligibility
from .direct.connection import DirectDependencies
from .mitm import handover, http1_server, listeners
from .mitm.interception import Interception
from .mitm.mirror_tls import MirrorTls
from .mitm.other_addons import OtherAddons
from .mitm.tls import Handshakes
from .mitm.tunnel import Connects
from .serve.messages import Forward
from .serve.responder import Responder


class ConnectionHooks:
    """`own` are the addons that are part of this program, beside this one."""

    def __init__(self, own: Iterable[object]) -> None:
        self.guard = AccessHooks(ClientLimits())
        self._present = ClientGroup()
        self._handled: HandledClients | None = None
        self._mirror_tls = MirrorTls()
        self.addons = [self.guard]
        self._own = (self, self.guard, *own)
        self._interception = Interception(())
        self._connects: Connects | None = None
        self._handshakes: Handshakes | None = None
        self._front: eligibility.Front | None = None
        self._looked_at = -1
        self._decider: Responder | None = None
        self._decisions: WeakKeyDictionary[Client, Forward] = WeakKeyDictionary()

    def load(self, _: addonmanager.Loader) -> None:
        """Look out for other addons."""
        self._others = OtherAddons(ctx.master.addons, self._own)

    def configure(self, _: set[str]) -> None:
        """An option changed: look at all of them again."""
        self._connects = self._handshakes = None
        self._looked_at = -1

    def intercept(self, interception: Interception) -> None:
        """Speak with clients of these hosts."""
        self._interception = interception
        self.configure(set())

    def receive(self, servers: Iterable[ServerInstance[Any]], decider: Responder) -> None:
        """Begin with the clients of these doors before mitmproxy does, where that makes no difference to anybody."""
        self._decider = decider
        self.guard.clients.measure()  # there may be more descriptors by now
        listeners.receive(servers, self._reception, self.guard.clients)

    async def close_doors(self) -> None:
        """Accept no client any more; those who are there are left by `leave`."""
        await ctx.master.addons.get("proxyserver").servers.update([])

    def leave(self) -> int:
        """Leave all clients who are not being served; returns how many are."""
        if self._handled is None:
            self._handled = HandledClients(ctx.master.addons.get("proxyserver").connections)
        return self._present.leave() + self._handled.leave()

    @property
    def new(self) -> int:
        """How many clients may be about to ask something, when `leave` was called last."""
        return self._present.new + (self._handled.new if self._handled is not None else 0)

    def cut(self) -> None:
        """End the connections with all clients."""
        self._present.cut()
        if self._handled is not None:
            self._handled.cut()

    def decided(self, client: Client) -> Forward | None:
        """What was decided about a client's next request before mitmproxy took over."""
        return self._decisions.pop(client, None)

    def renew(self) -> None:
        """Forget leaf certificates."""
        ctx.master.addons.get("tlsconfig").certstore.certs.clear()
        self._handshakes = None
        self._looked_at = -1

    # -- made when they are needed, by what the options are then; no properties, which mitmproxy would evaluate ------

    def _connecting(self) -> Connects:
        if self._connects is None:
            self._connects = Connects(self._interception, ctx.options)
        return self._connects

    def _shaking(self) -> Handshakes:
        if self._handshakes is None:
            leaf = ctx.master.addons.get("tlsconfig").get_cert
            self._handshakes = Handshakes(self._interception, ctx.options, leaf)
        return self._handshakes

    def _reception(self, server: ServerInstance[Any], client: tuple[str, int]) -> asyncio.Protocol | None:
        if self._looked_at != self._others.changes:
            self._looked_at, self._front = self._others.changes, None
            assert self._decider is not None
            if eligibility.permitted(ctx.options, self._others.listen_to):
                parts = (self._interception, self._connecting(), self._shaking(), self._decider)
                show = _show if ctx.options.flow_detail else None
                desk = DirectDependencies(
                    *parts, float(ctx.options.tcp_timeout), show, self.guard.clients, self._present
                )
                self._front = eligibility.Front(desk, ctx.options)
        return self._front.receive(server, client) if self._front is not None else None

    # -- hooks --------------------------------------------------------------------------------------------------------

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Tell a client that its connection ends with this answer, where that is so."""
        if self._handled is not None and flow.response is not None and not flow.request.is_http2:
            flow.response.headers["Connection"] = "close"

    def next_layer(self, data: layer.NextLayer) -> None:
        """Give HTTP connections our client side. Scripts come before mitmproxy's own choice of the layer, so that is
        asked for first."""
        client = data.context.client
        handlers = ctx.master.addons.get("proxyserver").connections
        said = handover.said_before(client, handlers.get(client.id))
        going_on = None if said is None else handover.going_on(data.context, said)
        data.layer = data.layer or going_on or self._connecting().answer(data, self._others.listen_to)
        ctx.master.addons.get("nextlayer").next_layer(data)
        if said is not None and said.decision is not None:
            self._decisions[client] = said.decision
        if isinstance(client.proxy_mode, ReverseMode):
            self._mirror_tls.watch(data.layer)
        if data.layer is not None:
            http1_server.install(data.layer)

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """A client sends no server name when the registry is an address: have the leaf made for that address alone.
        mitmproxy would add the proxy's own, which the CA's name constraints do not permit."""
        address = data.context.server.address
        if data.context.client.sni is None and address is not None:
            data.context.client.sni = address[0]

    def tls_start_client(self, data: tls.TlsData) -> None:
        """Have TLS with clients of our hosts begin without mitmproxy, unless another addon wants to have a say."""
        if data.ssl_conn is None and not self._others.listen_to("tls_start_client"):
            data.ssl_conn = self._shaking().connection(data)


def _show(line: str) -> None:
    """Tell by mitmdump's own way of telling; where nobody reads that any more, clients are served on."""
    with contextlib.suppress(OSError):
        ctx.master.addons.get("dumper").echo(line)
