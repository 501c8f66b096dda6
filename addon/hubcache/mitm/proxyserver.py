"""Functions for mitmproxy's own listeners, and for the connections that it handles."""

from typing import Any

from mitmproxy import ctx
from mitmproxy.connection import Client, Server

type Address = tuple[str, int]


async def open_listeners() -> bool:
    """Have mitmproxy open the listeners of its `mode` option that are not open yet; False where it logged a failure."""
    opened: bool = await ctx.master.addons.get("proxyserver").setup_servers()
    return opened


def open_servers() -> tuple[Any, ...]:
    """Return mitmproxy's server of each mode."""
    return tuple(ctx.master.addons.get("proxyserver").servers)


async def close_listeners() -> None:
    """Have mitmproxy close its listeners; its connections stay open."""
    await ctx.master.addons.get("proxyserver").servers.update([])


def connection_handlers() -> dict[Any, Any]:
    """Return mitmproxy's own table of connection handlers by client id, which mitmproxy keeps up to date."""
    # mitmproxy 12.3.1: Proxyserver.connections. Without it idle clients can neither be found nor closed.
    handlers: dict[Any, Any] = ctx.master.addons.get("proxyserver").connections
    return handlers


def disconnect(client: Client) -> None:
    """Close the connection of a client that mitmproxy handles, as its own time-out does."""
    handler = connection_handlers().get(client.id)
    # mitmproxy 12.3.1: ConnectionHandler.transports and ConnectionIO.handler. Without them silent clients stay.
    transport = handler.transports.get(handler.client) if handler is not None else None
    if transport is not None and transport.handler is not None:
        transport.handler.cancel("timeout")


def set_address_of_open_connection(server: Server, address: Address) -> None:
    """Change the address by which mitmproxy knows an upstream connection that is open already.

    mitmproxy verifies certificates by it and finds connections to reuse by it; the IP address is in `peername`.
    """
    # mitmproxy 12.3.1: Server.__setattr__ raises while the connection is open. Without this, upstream certificates
    # would be verified for an IP address.
    vars(server)["address"] = address


def forget_leaf_certificates() -> None:
    """Have mitmproxy make each leaf certificate anew when it is next needed."""
    # mitmproxy 12.3.1: TlsConfig.certstore, CertStore.certs. Without them certificates expire while the program runs.
    ctx.master.addons.get("tlsconfig").certstore.certs.clear()


def choose_layer(question: Any) -> None:
    """Have mitmproxy's own addon choose the next protocol layer of a connection."""
    # mitmproxy 12.3.1: the addon "nextlayer". Without it HTTP layers cannot be changed before they start.
    ctx.master.addons.get("nextlayer").next_layer(question)
