"""What mitmproxy is told of a client that it takes over: once, and as if it had spoken with it itself."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hubcache.mitm.handover import HandoverState, going_on, hand_over, said_before
from mitmproxy import connection
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.proxy import context
from mitmproxy.proxy.server import ConnectionIO
from OpenSSL import SSL
from support.direct import Transport
from support.mitm import taddons
from support.program import HUB_HOST
from support.tls_pair import handshakes, shake_hands, start


def a_client(options: Any) -> context.Context:
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)
    return context.Context(client, options)


def test_mitmproxy_knows_what_the_handshake_was_about(tmp_path: Path) -> None:
    with taddons.context(Proxyserver(), TlsConfig()) as known:
        known.options.update(confdir=str(tmp_path / "ca"), http2=False, upstream_cert=False)
        made = handshakes(known).connection(start(known))
        assert made is not None
        trusting = SSL.Context(SSL.TLS_CLIENT_METHOD)
        trusting.set_alpn_protos([b"http/1.1"])
        other = SSL.Connection(trusting)
        other.set_connect_state()
        shake_hands(other, made)
        at = a_client(known.options)
        assert going_on(at, HandoverState((HUB_HOST, 443), made, is_secure=True)) is not None
        assert (at.client.sni, at.client.alpn, at.client.tls_version) == (HUB_HOST, b"http/1.1", "TLSv1.3")
        assert (at.client.cipher, at.client.tls_established) == (other.get_cipher_name(), True)
        assert (at.server.address, at.server.tls) == ((HUB_HOST, 443), True)


def test_client_that_has_said_nothing_begins_with_mitmproxy() -> None:
    with taddons.context(Proxyserver()) as known:
        at = a_client(known.options)
        assert going_on(at, HandoverState()) is None
        assert at.server.address is None


async def test_what_was_said_is_told_once() -> None:
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)
    writers: list[asyncio.StreamWriter] = []
    server: Any = SimpleNamespace(handle_stream=lambda _, writer: writers.append(writer))
    transport, said = Transport(), HandoverState((HUB_HOST, 443))
    hand_over(transport, server, said, b"received")
    handler: Any = SimpleNamespace(transports={client: ConnectionIO(writer=writers[0])})
    assert said_before(client, None) is None
    assert said_before(client, handler) is said
    assert said_before(client, handler) is None
    transport.set_protocol(asyncio.Protocol())
    assert said_before(client, handler) is None
    transport.close()
