"""mitmproxy's hooks that decide which clients may connect, and to which addresses mitmproxy connects.

mitmproxy connects only to the destination that this program sets for a flow, or to the address that `Destinations`
returned for the host that a client named. The clients that it handles are counted like direct connections, and have the
same time for their first request.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from weakref import WeakKeyDictionary

from mitmproxy import http, tcp
from mitmproxy.connection import Client, Server
from mitmproxy.flow import Flow
from mitmproxy.proxy.mode_specs import RegularMode, ReverseMode, UpstreamMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from .clients.destinations import Address, Destinations, Refused
from .clients.limits import REQUEST_SECONDS, ClientLimits
from .decide.outbound_proxy import OutboundProxies, OutboundProxy
from .decide.throttle import Throttle
from .mitm import proxied_flows
from .mitm.flow_headers import body_length, drop_body
from .mitm.interception import Interception
from .operate.options import Settings
from .serve.messages import MAX_SMALL_BODY

logger = logging.getLogger("hubcache")

_LOG_SECONDS = 60.0


class AccessHooks:
    """mitmproxy's access hooks; `limits` counts all clients.

    `disconnect` closes the connection of a client, and `rename` changes the address by which mitmproxy knows an open
    upstream connection. mitmproxy's public hooks offer neither. Without them, silent clients are not disconnected, and
    an upstream connection is known by its IP address.
    """

    def __init__(
        self,
        limits: ClientLimits,
        disconnect: Callable[[Client], None] | None = None,
        rename: Callable[[Server, Address], None] | None = None,
    ) -> None:
        self.limits = limits
        self.on_refused: Callable[[http.HTTPFlow, str], None] = lambda flow, reason: None
        """Called with a flow whose destination is not permitted, and the reason."""
        self._disconnect = disconnect
        self._rename = rename
        self._interception = Interception(())
        self._destinations = self._registries = Destinations((), ())
        """Where clients may go through the proxy, and where registries may be that clients named."""
        self._directed: WeakKeyDictionary[Client, dict[str, Address]] = WeakKeyDictionary()
        """Where this program directed the flows of a client, by the flow's id."""
        self._to_named: WeakKeyDictionary[Client, dict[str, Address]] = WeakKeyDictionary()
        """The registries named by a client to which this program directed its flows, by the flow's id."""
        self._resolved: WeakKeyDictionary[Client, tuple[Address, Address]] = WeakKeyDictionary()
        """The address that a client named last, and what it was resolved to."""
        self._proxies = OutboundProxies()
        self._tunnel_proxies: WeakKeyDictionary[Client, Address] = WeakKeyDictionary()
        """The address of the outbound proxy through which a client's tunnel goes."""
        self._targets: WeakKeyDictionary[Client, dict[str, Address]] = WeakKeyDictionary()
        """Host and port of requests that were sent to an outbound proxy in absolute form, by the flow's id."""
        self._names: WeakKeyDictionary[Server, Address] = WeakKeyDictionary()
        """The named addresses of connections that are about to be made."""
        self._handled: WeakKeyDictionary[Client, _HandledClient] = WeakKeyDictionary()
        self._throttle = Throttle(_LOG_SECONDS, time.monotonic)

    def apply(
        self, settings: Settings, interception: Interception, ports: Iterable[int], proxies: OutboundProxies
    ) -> None:
        """Use these option values, at start and later; `ports` are those that this program listens on."""
        self._interception = interception
        self._proxies = proxies
        ports = tuple(ports)
        self._destinations, self._registries = Destinations(settings.tunnel, ports), Destinations(("*",), ports)
        self.limits.networks = settings.clients

    # -- clients --------------------------------------------------------------------------------------------------

    def client_connected(self, client: Client) -> None:
        """Count a client, or refuse it by setting its `error`, after which mitmproxy closes the connection.

        mitmproxy does not call `client_disconnected` for a client that already has an error.
        """
        if client.error is not None:
            return
        address, handled = client.peername[0], _HandledClient(client, self._disconnect)
        if not self.limits.admits(address):
            client.error = "not in hubcache_clients"
        elif not self.limits.add(handled, address):
            client.error = "too many connections of one address"
        else:
            self._handled[client] = handled
            if self._disconnect is None:  # a new connection is refused, as no idle one can be closed for it
                self.limits.mark_busy(handled)
            if isinstance(client.proxy_mode, RegularMode | ReverseMode | UpstreamMode):
                handled.expect_request()

    def client_disconnected(self, client: Client) -> None:
        """Stop counting the client."""
        handled = self._handled.pop(client, None)
        if handled is not None:
            handled.request_received()
            self.limits.remove(handled)

    def request_received(self, flow: Flow) -> None:
        """Note that a client waits for an answer, until its flow has ended."""
        handled = self._handled.get(flow.client_conn)
        if handled is not None:
            handled.request_received()
            handled.flows.add(flow.id)
            self.limits.mark_busy(handled)

    def _flow_ended(self, flow: http.HTTPFlow) -> None:
        handled = self._handled.get(flow.client_conn)
        has_switched = flow.response is not None and flow.response.status_code == 101  # to a protocol other than HTTP
        if handled is not None and not has_switched:
            handled.flows.discard(flow.id)
            if not handled.flows and self._disconnect is not None:
                self.limits.mark_idle(handled)

    def tcp_start(self, flow: tcp.TCPFlow) -> None:
        """Note that a connection carries something other than HTTP from now on."""
        self.request_received(flow)

    # -- destinations that clients name ---------------------------------------------------------------------------

    def http_connect(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Answer a CONNECT to a destination that is not permitted with 403."""
        if flow.response or flow.error or self._interception.has(flow.request.host, flow.request.port):
            return None
        self.request_received(flow)
        return self._check(flow)

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Answer a request whose absolute URI names a destination that is not permitted with 403."""
        is_directed = flow.id in self._directed.get(flow.client_conn, ())
        if flow.response or flow.error or not flow.live or is_directed or self._interception.place(flow) is not None:
            self._refuse_large_body(flow)
            return None
        return self._check(flow)

    def _refuse_large_body(self, flow: http.HTTPFlow) -> None:
        """Disconnect a client that sends a large body with a request that has its answer already, where mitmproxy's
        public hooks alone are used: mitmproxy would keep all of the body in memory."""
        length = body_length(flow.request)
        is_small = length is not None and length <= MAX_SMALL_BODY
        if self._disconnect is None and flow.response is not None and flow.killable and not is_small:
            flow.kill()

    async def _check(self, flow: http.HTTPFlow) -> None:
        address = flow.request.host, flow.request.port
        is_tunnel = flow.request.method == "CONNECT"
        proxy = self._proxies.find("https" if is_tunnel else flow.request.scheme, *address)
        try:
            if proxied_flows.has_passed(flow.request):
                raise Refused("the outbound proxy sends requests back to this cache")
            if proxy is not None:
                self._destinations.check_unresolved(address)
                if not is_tunnel:
                    self._connect_through(flow, proxy)
                return
            self._resolved[flow.client_conn] = address, await self._destinations.resolve(address)
        except Refused as refused:
            self._log_refused(flow.client_conn, refused)
            drop_body(flow.request)
            flow.request.stream = False
            headers = {"Content-Type": "text/plain; charset=utf-8", "Connection": "close"}
            flow.response = http.Response.make(403, f"{refused}\n", headers)
            self.on_refused(flow, str(refused))
            self._refuse_large_body(flow)
        except OSError:  # mitmproxy answers with the reason when it cannot connect
            return

    def _log_refused(self, client: Client, refused: Refused) -> None:
        if self._throttle.permits(client.peername[0]):
            logger.info("hubcache: %s was refused: %s", client.peername[0], refused)

    # -- upstream connections -------------------------------------------------------------------------------------

    def directed(self, flow: http.HTTPFlow) -> None:
        """Permit the direct connection of a flow that this program directed to an upstream or to the body listener."""
        proxied_flows.connect_directly(flow)
        addresses = self._directed.setdefault(flow.client_conn, {})
        addresses[flow.id] = flow.request.host, flow.request.port

    def directed_upstream(self, flow: http.HTTPFlow, *, is_named_by_client: bool = False) -> None:
        """Permit the connection of a flow that this program directed to an upstream, and have it go through the
        outbound proxy if there is one. A direct one to a registry that the client named is permitted unless its
        address is local."""
        proxy = self._proxies.find(flow.request.scheme, flow.request.host, flow.request.port)
        if proxy is not None:
            self._connect_through(flow, proxy)
        elif is_named_by_client:
            proxied_flows.connect_directly(flow)
            self._to_named.setdefault(flow.client_conn, {})[flow.id] = flow.request.host, flow.request.port
        else:
            self.directed(flow)

    def _connect_through(self, flow: http.HTTPFlow, proxy: OutboundProxy) -> None:
        self._directed.setdefault(flow.client_conn, {})[flow.id] = proxy.address
        self._targets.setdefault(flow.client_conn, {})[flow.id] = flow.request.host, flow.request.port
        proxied_flows.connect_through(flow, proxy)

    def tunnel_proxy(self, client: Client, address: Address) -> OutboundProxy | None:
        """Return the outbound proxy for a client's tunnel, to which connections are then permitted; None for a tunnel
        that is direct or refused."""
        proxy = self._proxies.find("https", *address)
        if proxy is None:
            return None
        try:
            self._destinations.check_unresolved(address)
        except Refused:
            return None
        self._tunnel_proxies[client] = proxy.address
        return proxy

    def http_connect_upstream(self, flow: http.HTTPFlow) -> None:
        """Add credentials to mitmproxy's CONNECT to an outbound proxy."""
        proxy = self._proxies.at(flow.server_conn.address) if flow.server_conn.address is not None else None
        if proxy is not None:
            proxied_flows.authenticate_connect(flow, proxy)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Show a request's own host again, in place of the outbound proxy's."""
        target = self._targets.get(flow.client_conn, {}).pop(flow.id, None)
        if target is not None:
            proxied_flows.show_target(flow, target)

    def response(self, flow: http.HTTPFlow) -> None:
        """Note that a flow is complete."""
        for directed in (self._directed, self._to_named):
            directed.get(flow.client_conn, {}).pop(flow.id, None)
        self._flow_ended(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        """Note that a flow failed."""
        self.responseheaders(flow)
        self.response(flow)

    def server_connect(self, data: ServerConnectionHookData) -> Awaitable[None] | None:
        """Have mitmproxy connect to an address that was checked, or not at all."""
        address, mode = data.server.address, data.client.proxy_mode
        if address is None or data.server.transport_protocol != "tcp":
            return None
        if address[:2] in self._directed.get(data.client, {}).values():
            return None
        if isinstance(mode, UpstreamMode) and address[:2] == mode.address:
            return None
        if address[:2] == self._tunnel_proxies.get(data.client):
            return None
        return self._pin(data, (address[0], address[1]))

    async def _pin(self, data: ServerConnectionHookData, address: Address) -> None:
        named, resolved = self._resolved.pop(data.client, (None, None))
        is_registry = address in self._to_named.get(data.client, {}).values()
        try:
            if is_registry:
                resolved = await self._registries.resolve(address)
            elif named != address or resolved is None:
                if self._proxies.find("https", *address) is not None:
                    raise Refused(f"{address[0]}:{address[1]} is reached through an outbound proxy only")
                resolved = await self._destinations.resolve(address)
        except Refused as refused:
            self._log_refused(data.client, refused)
            data.server.error = (
                "the registry has a local address, and is not configured" if is_registry else str(refused)
            )
        except OSError as error:
            data.server.error = f"cannot be resolved: {error.strerror or error}"
        else:
            if self._rename is not None:
                self._names[data.server] = address
            elif data.server.sni is None:  # the name by which a certificate is verified
                data.server.sni = address[0]
            data.server.address = resolved

    def server_connected(self, data: ServerConnectionHookData) -> None:
        """Restore the connection's host name, by which mitmproxy verifies certificates and finds open connections.

        The IP address that it goes to is in `peername`.
        """
        named = self._names.pop(data.server, None)
        if named is not None and self._rename is not None:
            self._rename(data.server, named)

    def server_connect_error(self, data: ServerConnectionHookData) -> None:
        """Restore the connection's host name, as after success."""
        self.server_connected(data)


class _HandledClient:
    """A client that mitmproxy handles."""

    def __init__(self, client: Client, disconnect: Callable[[Client], None] | None) -> None:
        self._client = client
        self._disconnect = disconnect
        self._timer: asyncio.TimerHandle | None = None
        self.flows: set[str] = set()
        """Ids of the flows that are not answered yet."""

    def expect_request(self) -> None:
        """Disconnect the client unless it sends a request in time."""
        self._timer = asyncio.get_running_loop().call_later(REQUEST_SECONDS, self.disconnect)

    def request_received(self) -> None:
        """Note that a request came in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def disconnect(self) -> None:
        """Close the connection, where that is possible."""
        if self._disconnect is not None:
            self._disconnect(self._client)
