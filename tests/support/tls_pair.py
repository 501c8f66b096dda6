"""TLS between the program's connection and a client's, in memory."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.mitm.interception import Interception
from hubcache.mitm.tls import TlsConnection, TlsContexts
from hubcache.oci.registry import Registry
from mitmproxy import connection, tls
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.proxy import context
from OpenSSL import SSL

from support.mitm import taddons
from support.program import HUB_HOST

VERSIONS = [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION]


def mitmproxy_fixture() -> Any:
    """Return a fixture for mitmproxy's options, with a CA."""

    @pytest.fixture
    def known(tmp_path: Path) -> Iterator[taddons.context]:
        with taddons.context(Proxyserver(), TlsConfig()) as running:
            running.options.update(confdir=str(tmp_path / "ca"), http2=False, upstream_cert=False)
            yield running

    return known


def tls_contexts(known: taddons.context) -> TlsContexts:
    """Return the contexts for the Hub."""
    leaf = known.master.addons.get("tlsconfig").get_cert
    return TlsContexts(Interception([Registry.parse(HUB_HOST)]), leaf)


def start(known: taddons.context, sni: str | None = HUB_HOST, address: tuple[str, int] | None = None) -> tls.TlsData:
    """Return the event of a client's hello for this name in a tunnel to this address."""
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)
    client.sni = sni
    made = context.Context(client, known.options)
    made.server.address = address or (HUB_HOST, 443)
    return tls.TlsData(client, made)


def established(known: taddons.context, version: int = SSL.TLS1_3_VERSION) -> tuple[SSL.Connection, TlsConnection]:
    """Return a client's connection and the program's, after their handshake."""
    trusting = SSL.Context(SSL.TLS_CLIENT_METHOD)
    trusting.set_min_proto_version(version)
    trusting.set_max_proto_version(version)
    client = SSL.Connection(trusting)
    client.set_connect_state()
    made = tls_contexts(known).connection_for_hello(start(known))
    assert made is not None
    shake_hands(client, made)
    return client, made


def shake_hands(client: SSL.Connection, made: SSL.Connection) -> None:
    for _ in range(3):
        for one, other in ((client, made), (made, client)):
            with contextlib.suppress(SSL.WantReadError):
                one.do_handshake()
            for data in taken_from(one):
                other.bio_write(data)


def taken_from(connection: SSL.Connection) -> list[bytes]:
    """Return the bytes that a connection has to send, as mitmproxy takes them."""
    return list(iter_until(SSL.WantReadError, lambda: bytes(connection.bio_read(65535))))


def arrived(client: SSL.Connection, encrypted: list[bytes]) -> bytes:
    for data in encrypted:
        client.bio_write(data)
    return b"".join(iter_until(SSL.WantReadError, lambda: client.recv(65535)))


def iter_until(end: type[Exception], call: Callable[[], bytes]) -> Iterator[bytes]:
    with contextlib.suppress(end):
        while True:
            yield call()
