"""The handover to mitmproxy, which gets the state once, and knows all that it would have found out itself."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.mitm.handover import HandoverState, first_layer, hand_over, take_state
from mitmproxy import connection
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.proxy import context
from mitmproxy.proxy.server import ConnectionIO
from OpenSSL import SSL
from support.direct import Transport
from support.mitm import taddons
from support.program import HUB_HOST
from support.tls_pair import shake_hands, start, tls_contexts
from support.users import until


def a_client(options: Any) -> context.Context:
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)
    return context.Context(client, options)


def test_mitmproxy_knows_what_the_handshake_was_about(tmp_path: Path) -> None:
    with taddons.context(Proxyserver(), TlsConfig()) as known:
        known.options.update(confdir=str(tmp_path / "ca"), http2=False, upstream_cert=False)
        made = tls_contexts(known).connection_for_hello(start(known))
        assert made is not None
        trusting = SSL.Context(SSL.TLS_CLIENT_METHOD)
        trusting.set_alpn_protos([b"http/1.1"])
        other = SSL.Connection(trusting)
        other.set_connect_state()
        shake_hands(other, made)
        at = a_client(known.options)
        assert first_layer(at, HandoverState((HUB_HOST, 443), made, is_secure=True)) is not None
        assert (at.client.sni, at.client.alpn, at.client.tls_version) == (HUB_HOST, b"http/1.1", "TLSv1.3")
        assert (at.client.cipher, at.client.tls_established) == (other.get_cipher_name(), True)
        assert (at.server.address, at.server.tls) == ((HUB_HOST, 443), True)


def test_client_that_has_said_nothing_begins_with_mitmproxy() -> None:
    with taddons.context(Proxyserver()) as known:
        at = a_client(known.options)
        assert first_layer(at, HandoverState()) is None
        assert at.server.address is None


async def test_state_is_returned_once() -> None:
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)
    writers: list[asyncio.StreamWriter] = []
    served = asyncio.Event()

    async def handle_stream(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await served.wait()

    transport, state = Transport(), HandoverState((HUB_HOST, 443))
    hand_over(transport, SimpleNamespace(handle_stream=handle_stream), state, b"received")  # type: ignore[arg-type]
    await until(lambda: writers)
    handler: Any = SimpleNamespace(transports={client: ConnectionIO(writer=writers[0])})
    assert take_state(client, None) is None
    assert take_state(client, handler) is state
    assert take_state(client, handler) is None
    transport.set_protocol(asyncio.Protocol())
    assert take_state(client, handler) is None
    served.set()
    await until(transport.is_closing)


@pytest.mark.parametrize("error", [None, asyncio.CancelledError()])
async def test_connection_is_closed_when_mitmproxy_has_ended(error: BaseException | None) -> None:
    """mitmproxy may end without closing it."""

    async def handle_stream(*_: object) -> None:
        if error is not None:
            raise error

    transport = Transport()
    hand_over(transport, SimpleNamespace(handle_stream=handle_stream), HandoverState(), b"x")  # type: ignore[arg-type]
    await until(transport.is_closing)
