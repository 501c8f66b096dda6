"""Has mitmproxy connect through an outbound proxy for tunnels whose content it does not read.

mitmproxy itself does so in its mode `upstream:` only, with a layer that has no public name.
"""

from collections.abc import Callable

from mitmproxy.connection import Client
from mitmproxy.proxy import context, layer
from mitmproxy.proxy.layers.http._upstream_proxy import HttpUpstreamProxy

from ..decide.outbound_proxy import OutboundProxy
from .interception import Interception

type FindProxy = Callable[[Client, tuple[str, int]], OutboundProxy | None]
"""Returns the outbound proxy for a client's tunnel to an address; None for a direct one."""


def first_layer(at: context.Context, interception: Interception, find_proxy: FindProxy) -> layer.Layer | None:
    """Return the layer that connects to `at.server` through an outbound proxy; mitmproxy chooses what is inside.

    None without an outbound proxy, for registries, and where the server is not known yet or already has a connection.
    """
    server = at.server
    if server.address is None or server.connected or server.via is not None or server.transport_protocol != "tcp":
        return None
    address = server.address[0], server.address[1]
    proxy = None if interception.has(*address) else find_proxy(at.client, address)
    if proxy is None:
        return None
    server.via = (proxy.scheme, proxy.address)
    # mitmproxy 12.3.1 does the same for each CONNECT in its mode `upstream:`. Without the layer, tunnels fail.
    return HttpUpstreamProxy.make(at, send_connect=True)[0]
