"""mitmproxy's hooks about clients and destinations, without a mitmproxy."""

from types import SimpleNamespace
from typing import Any

import pytest
from hubcache import access_hooks
from hubcache.access_hooks import AccessHooks
from hubcache.clients.destinations import Refused
from hubcache.clients.limits import ClientLimits
from hubcache.mitm import proxyserver
from mitmproxy.connection import Client, ConnectionState, Server
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.proxy.server_hooks import ServerConnectionHookData
from support.program import HUB_HOST
from support.users import until


def made_client(mode: str = "regular", address: str = "127.0.0.1") -> Client:
    made = Client(peername=(address, 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)
    made.proxy_mode = ProxyMode.parse(mode)
    return made


def flow_of(client: Client, number: str = "1", status: int = 200) -> Any:
    return SimpleNamespace(id=number, client_conn=client, response=SimpleNamespace(status_code=status))


class Hooks:
    """Hooks that record the clients that they disconnect."""

    def __init__(self, limits: ClientLimits | None = None) -> None:
        self.disconnected: list[Client] = []
        self.limits = limits or ClientLimits()
        self.hooks = AccessHooks(self.limits, self.disconnected.append, proxyserver.set_address_of_open_connection)


class Resolver:
    """Stands in for destinations: each call resolves to the next of these addresses."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = list(addresses)

    async def resolve(self, address: tuple[str, int]) -> tuple[str, int]:
        if not self._addresses:
            raise Refused("no")
        return self._addresses.pop(0), address[1]


def resolving(hooks: AccessHooks, *addresses: str) -> AccessHooks:
    hooks._destinations = Resolver(*addresses)  # type: ignore[assignment]
    return hooks


async def connect(hooks: AccessHooks, client: Client, host: str, port: int = 443) -> Server:
    """Call the hook that comes before mitmproxy connects."""
    server = Server(address=(host, port))
    checking = hooks.server_connect(ServerConnectionHookData(server, client))
    if checking is not None:
        await checking
    return server


# -- destinations


async def test_connection_goes_to_the_checked_address_and_keeps_its_name() -> None:
    hooks, client = resolving(Hooks().hooks, "10.0.0.7"), made_client()
    server = await connect(hooks, client, "example.com")
    assert (server.address, server.error) == (("10.0.0.7", 443), None)
    server.state = ConnectionState.OPEN
    hooks.server_connected(ServerConnectionHookData(server, client))
    assert server.address == ("example.com", 443)


async def test_connection_keeps_its_address_where_it_cannot_be_renamed_and_its_name_is_verified() -> None:
    hooks, client = resolving(AccessHooks(ClientLimits()), "10.0.0.7"), made_client()
    server = await connect(hooks, client, "example.com")
    assert (server.address, server.sni) == (("10.0.0.7", 443), "example.com")
    server.state = ConnectionState.OPEN
    hooks.server_connected(ServerConnectionHookData(server, client))
    assert (server.address, server.sni) == (("10.0.0.7", 443), "example.com")


async def test_name_is_resolved_once_for_a_connect_and_its_connection() -> None:
    """DNS may answer differently the next time."""
    hooks, client = resolving(Hooks().hooks, "10.0.0.7"), made_client()
    flow: Any = SimpleNamespace(
        response=None,
        error=None,
        client_conn=client,
        request=SimpleNamespace(method="CONNECT", host="example.com", port=443, headers={}),
    )
    checking = hooks.http_connect(flow)
    assert checking is not None
    await checking
    assert flow.response is None
    assert (await connect(hooks, client, "example.com")).address == ("10.0.0.7", 443)
    assert (await connect(hooks, client, "example.com")).error == "no"


async def test_connection_without_a_request_is_checked_too() -> None:
    hooks = resolving(Hooks().hooks)
    for mode in ("regular", "socks5", f"reverse:https://{HUB_HOST}", "upstream:http://127.0.0.1:3128"):
        assert (await connect(hooks, made_client(mode), "127.0.0.1", 22)).error == "no"


async def test_upstream_proxy_of_mitmproxys_mode_is_reached() -> None:
    server = await connect(Hooks().hooks, made_client("upstream:http://127.0.0.1:3128"), "127.0.0.1", 3128)
    assert (server.address, server.error) == (("127.0.0.1", 3128), None)


async def test_flow_may_connect_where_it_was_directed_until_it_ends() -> None:
    hooks, client, other = Hooks().hooks, made_client(), made_client()
    flow = flow_of(client)
    flow.request = SimpleNamespace(host="127.0.0.1", port=5001)
    flow.server_conn = Server(address=None)
    hooks.directed(flow)
    assert (await connect(hooks, client, "127.0.0.1", 5001)).error is None
    assert (await connect(hooks, client, "127.0.0.1", 5002)).error is not None
    assert (await connect(hooks, other, "127.0.0.1", 5001)).error is not None
    hooks.response(flow)
    assert (await connect(hooks, client, "127.0.0.1", 5001)).error is not None


# -- clients


async def test_client_without_a_request_is_disconnected_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_hooks, "REQUEST_SECONDS", 0.01)
    at, slow, quick = Hooks(), made_client(), made_client()
    at.hooks.client_connected(quick)
    at.hooks.request_received(flow_of(quick))
    at.hooks.client_connected(slow)
    await until(lambda: at.disconnected)
    assert at.disconnected == [slow]
    for client in (slow, quick):
        at.hooks.client_disconnected(client)
    assert at.limits._counts == {}


async def test_client_is_idle_when_it_has_all_its_answers() -> None:
    at, client = Hooks(), made_client()
    at.hooks.client_connected(client)
    flows = [flow_of(client, str(number), status) for number, status in enumerate((200, 404))]
    for flow in flows:
        at.hooks.request_received(flow)
    assert not at.limits.close_oldest()
    at.hooks.response(flows[0])
    assert not at.limits.close_oldest()
    at.hooks.error(flows[1])
    assert at.disconnected == []
    assert at.limits.close_oldest()
    assert at.disconnected == [client]


async def test_client_is_not_idle_after_a_switch_of_protocols() -> None:
    at, client = Hooks(), made_client()
    at.hooks.client_connected(client)
    flow = flow_of(client, status=101)
    at.hooks.request_received(flow)
    at.hooks.response(flow)
    assert not at.limits.close_oldest()
    assert at.disconnected == []


async def test_address_with_too_many_clients_gets_no_more() -> None:
    at = Hooks(ClientLimits(1000))
    clients = [made_client() for _ in range(at.limits.max_per_address + 1)]
    for number, client in enumerate(clients):
        at.hooks.client_connected(client)
        at.hooks.request_received(flow_of(client, str(number)))
    assert [client.error for client in clients[-2:]] == [None, "too many connections of one address"]
    for client in clients:
        at.hooks.client_disconnected(client)
    assert at.limits._counts == {}


async def test_too_many_idle_clients_of_an_address_are_refused_where_none_can_be_disconnected() -> None:
    limits = ClientLimits(1000)
    hooks = AccessHooks(limits)
    clients = [made_client() for _ in range(limits.max_per_address + 1)]
    for client in clients:
        hooks.client_connected(client)
        hooks.request_received(flow_of(client))
        hooks.response(flow_of(client))
    assert [client.error for client in clients[-2:]] == [None, "too many connections of one address"]
    for client in clients:
        hooks.client_disconnected(client)
    assert limits._counts == {}


async def test_client_that_another_addon_refuses_is_not_counted() -> None:
    """mitmproxy's `block_global` comes first; for a client that it refuses there is no `client_disconnected`."""
    at, client = Hooks(), made_client()
    client.error = "Connection killed by block_global"
    at.hooks.client_connected(client)
    assert at.limits._counts == {}
    assert not at.limits.close_oldest()
    assert client.error == "Connection killed by block_global"
