"""Protocols of accepted clients: direct connections, refusals, or none where mitmproxy serves."""

import asyncio
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

from hubcache.clients.limits import ClientLimits
from hubcache.direct.acceptor import DirectAcceptor
from hubcache.direct.connection import DirectConnection
from mitmproxy.proxy.mode_specs import ProxyMode
from support.direct import Transport, dependencies

SERVER: Any = SimpleNamespace(mode=ProxyMode.parse("regular"))


class Decision:
    """An eligibility that is decided by the test."""

    direct = True

    def is_direct(self, mode: object, client: str) -> bool:
        return self.direct


async def test_eligible_client_gets_a_direct_connection_and_others_do_not() -> None:
    decision: Any = Decision()
    acceptor = DirectAcceptor(decision, dependencies)
    assert isinstance(acceptor.protocol(SERVER, ("127.0.0.1", 50_000)), DirectConnection)
    decision.direct = False
    assert acceptor.protocol(SERVER, ("127.0.0.1", 50_000)) is None


async def test_client_of_another_network_is_disconnected_at_once() -> None:
    limits = ClientLimits()
    limits.networks = (ip_network("10.0.0.0/8"),)
    decision: Any = Decision()
    protocol = DirectAcceptor(decision, lambda: dependencies(limits=limits)).protocol(SERVER, ("127.0.0.1", 50_000))
    assert isinstance(protocol, asyncio.Protocol)
    transport = Transport()
    protocol.connection_made(transport)
    assert transport.is_aborted


async def test_dependencies_are_made_once_and_again_when_an_option_changes() -> None:
    made = []

    def make() -> Any:
        made.append(dependencies())
        return made[-1]

    decision: Any = Decision()
    acceptor = DirectAcceptor(decision, make)
    for expected in (1, 1, 2):
        if expected == 2:
            acceptor.options_changed()
        acceptor.protocol(SERVER, ("127.0.0.1", 50_000))
        assert len(made) == expected
