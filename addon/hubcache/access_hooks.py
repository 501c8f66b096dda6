"""mitmproxy's hooks about who comes in and where connections go out: an addon inside of ours.

mitmproxy connects only to where this program pointed a flow, or to the address that `Destinations` found for what a
client named. Clients that it speaks with are counted like direct connections, and have the same time for their first
request.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable
from weakref import WeakKeyDictionary

from mitmproxy import ctx, http, tcp
from mitmproxy.connection import Client, Server
from mitmproxy.flow import Flow
from mitmproxy.proxy.mode_specs import RegularMode, ReverseMode, UpstreamMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from .clients.destinations import Address, Destinations, Refused
from .clients.limits import ClientLimits
from .decide.throttle import Throttle
from .direct.connection import HEAD_SECONDS
from .mitm import http1_server
from .mitm.interception import Interception
from .operate.options import Settings

logger = logging.getLogger("hubcache")

_SAY_SECONDS = 60.0


class AccessHooks:
    """`clients` counts all of them."""

    def __init__(self, clients: ClientLimits) -> None:
        self.clients = clients
        self._interception = Interception(())
        self._tunnels = Destinations((), ())
        self._aims: WeakKeyDictionary[Client, dict[str, Address]] = WeakKeyDictionary()
        """Where this program has flows of a client go, by the flow's id."""
        self._found: WeakKeyDictionary[Client, tuple[Address, Address]] = WeakKeyDictionary()
        """What was found for the address that a client named last."""
        self._names: WeakKeyDictionary[Server, Address] = WeakKeyDictionary()
        """What connections that are about to be made were named."""
        self._handled: WeakKeyDictionary[Client, _Handled] = WeakKeyDictionary()
        self._throttle = Throttle(_SAY_SECONDS, time.monotonic)

    def apply(self, settings: Settings, interception: Interception, ports: Iterable[int]) -> None:
        """Take over option values, at start and while running; `ports` are those that this program listens on."""
        self._interception = interception
        self._tunnels = Destinations(settings.tunnel, ports)
        self.clients.networks = settings.clients

    # -- clients ------------------------------------------------------------------------------------------------------

    def client_connected(self, client: Client) -> None:
        """mitmproxy closes what has an error now; of what has one already, no end is told."""
        if client.error is not None:
            return
        address, handled = client.peername[0], _Handled(client)
        if not self.clients.admits(address):
            client.error = "not in hubcache_clients"
        elif not self.clients.enter(handled, address):
            client.error = "too many connections of one address"
        else:
            self._handled[client] = handled
            if isinstance(client.proxy_mode, RegularMode | ReverseMode | UpstreamMode):
                handled.hurry()

    def client_disconnected(self, client: Client) -> None:
        """Count it no more."""
        handled = self._handled.pop(client, None)
        if handled is not None:
            handled.has_asked()
            self.clients.leave(handled)

    def asked(self, flow: Flow) -> None:
        """A flow of a client begins: the client waits for us, until `_ended`."""
        handled = self._handled.get(flow.client_conn)
        if handled is not None:
            handled.has_asked()
            handled.flows.add(flow.id)
            self.clients.work(handled)

    def _ended(self, flow: http.HTTPFlow) -> None:
        handled = self._handled.get(flow.client_conn)
        has_switched = flow.response is not None and flow.response.status_code == 101  # to what is not HTTP
        if handled is not None and not has_switched:
            handled.flows.discard(flow.id)
            if not handled.flows:
                self.clients.wait(handled)

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        """What goes on is not HTTP."""
        self.asked(flow)

    # -- what clients name --------------------------------------------------------------------------------------------

    def http_connect(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Answer a CONNECT to what is not to be reached with 403."""
        if flow.response or flow.error or self._interception.has(flow.request.host, flow.request.port):
            return None
        self.asked(flow)
        return self._judge(flow)

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Answer a request with an absolute URI to what is not to be reached with 403."""
        is_aimed = flow.id in self._aims.get(flow.client_conn, ())
        if flow.response or flow.error or not flow.live or is_aimed or self._interception.place(flow) is not None:
            return None
        return self._judge(flow)

    async def _judge(self, flow: http.HTTPFlow) -> None:
        address = flow.request.host, flow.request.port
        try:
            self._found[flow.client_conn] = address, await self._tunnels.find(address)
        except Refused as refused:
            self._tell(flow.client_conn, refused)
            http1_server.drop_body(flow.request)
            flow.request.stream = False
            headers = {"Content-Type": "text/plain; charset=utf-8", "Connection": "close"}
            flow.response = http.Response.make(403, f"{refused}\n", headers)
        except OSError:  # what mitmproxy says of it is right
            return

    def _tell(self, client: Client, refused: Refused) -> None:
        if self._throttle.permits(client.peername[0]):
            logger.info("hubcache: %s was refused: %s", client.peername[0], refused)

    # -- connections that leave ---------------------------------------------------------------------------------------

    def aim(self, flow: http.HTTPFlow) -> None:
        """A flow was pointed to where it is to go: a registry's upstream, or the body listener."""
        aims = self._aims.setdefault(flow.client_conn, {})
        aims[flow.id] = flow.request.host, flow.request.port

    def response(self, flow: http.HTTPFlow) -> None:
        """A flow has its answer."""
        self._aims.get(flow.client_conn, {}).pop(flow.id, None)
        self._ended(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        """A flow broke off."""
        self.response(flow)

    def server_connect(self, data: ServerConnectionHookData) -> Awaitable[None] | None:
        """Have mitmproxy connect to an address that was looked at, or not at all."""
        address, mode = data.server.address, data.client.proxy_mode
        if address is None or data.server.transport_protocol != "tcp":
            return None
        if address[:2] in self._aims.get(data.client, {}).values():
            return None
        if isinstance(mode, UpstreamMode) and address[:2] == mode.address:
            return None
        return self._pin(data, (address[0], address[1]))

    async def _pin(self, data: ServerConnectionHookData, address: Address) -> None:
        named, found = self._found.pop(data.client, (None, None))
        try:
            if named != address or found is None:
                found = await self._tunnels.find(address)
        except Refused as refused:
            self._tell(data.client, refused)
            data.server.error = str(refused)
        except OSError as error:
            data.server.error = f"cannot be resolved: {error.strerror or error}"
        else:
            self._names[data.server] = address
            data.server.address = found

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """Give the connection its name back: mitmproxy verifies certificates by it, and looks for connections that are
        open by it. What is connected to is in `peername`. mitmproxy forbids to change it at this point, since that
        would not change what it is connected to."""
        named = self._names.pop(data.server, None)
        if named is not None:
            vars(data.server)["address"] = named

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """As for one that was made."""
        self.server_connected(data)


class _Handled:
    """A client that mitmproxy speaks with."""

    def __init__(self, client: Client) -> None:
        self._id = client.id
        self._timer: asyncio.TimerHandle | None = None
        self.flows: set[str] = set()
        """By their ids, those that are not answered yet."""

    def hurry(self) -> None:
        """It has so long for its first request."""
        self._timer = asyncio.get_running_loop().call_later(HEAD_SECONDS, self.dismiss)

    def has_asked(self) -> None:
        """It was in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def dismiss(self) -> None:
        """End the connection, as mitmproxy does after its own time-out."""
        handler = ctx.master.addons.get("proxyserver").connections.get(self._id)
        client = handler.transports.get(handler.client) if handler is not None else None
        if client is not None and client.handler is not None:
            client.handler.cancel("timeout")
