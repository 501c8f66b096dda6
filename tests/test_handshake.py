"""TLS with clients of our hosts: one context each, by mitmproxy's options or not at all; each leaf is the right one."""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import proxy
import pytest
from hubcache import handshake
from hubcache.handshake import Handshakes
from hubcache.interception import Interception
from hubcache.oci.registry import Registry
from hypothesis import given, settings
from hypothesis import strategies as st
from mitm import taddons
from mitmproxy import connection, tls
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.proxy import context
from OpenSSL import SSL
from proxy import HUB_HOST, TOKEN_HOST, Product, Rig
from standin import Hub, random_bytes

TABLE = Interception([Registry.parse(HUB_HOST)])


@pytest.fixture
def known(tmp_path: Path) -> Iterator[taddons.context]:
    """mitmproxy's options, with a CA."""
    with taddons.context(Proxyserver(), TlsConfig()) as running:
        running.options.update(confdir=str(tmp_path / "ca"), http2=False, upstream_cert=False)
        yield running


def handshakes(known: taddons.context) -> Handshakes:
    return Handshakes(TABLE, known.options, known.master.addons.get("tlsconfig").get_cert)


def start(known: taddons.context, sni: str | None = HUB_HOST, address: tuple[str, int] | None = None) -> tls.TlsData:
    """A client's hello for this name in a tunnel to this address."""
    client = connection.Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0)
    client.sni = sni
    made = context.Context(client, known.options)
    made.server.address = address or (HUB_HOST, 443)
    return tls.TlsData(client, made)


def test_connections_to_one_host_share_a_context_and_hosts_do_not(known: taddons.context) -> None:
    ours = handshakes(known)
    one, two = ours.connection(start(known)), ours.connection(start(known))
    other = ours.connection(start(known, TOKEN_HOST, (TOKEN_HOST, 443)))
    assert one is not None
    assert two is not None
    assert other is not None
    assert one is not two
    assert one.get_context() is two.get_context()
    assert other.get_context() is not one.get_context()


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_client_reads_what_was_sent_in_pieces_of_any_size(known: taddons.context, version: int) -> None:
    made = handshakes(known).connection(start(known))
    assert made is not None
    trusting = SSL.Context(SSL.TLS_CLIENT_METHOD)
    trusting.set_min_proto_version(version)
    trusting.set_max_proto_version(version)
    client = SSL.Connection(trusting)
    client.set_connect_state()
    shake_hands(client, made)

    @given(st.lists(st.tuples(st.integers(1, 200_000), st.booleans()), min_size=1, max_size=6))
    @settings(max_examples=30)
    def check(pieces: list[tuple[int, bool]]) -> None:
        sent, received = bytearray(), bytearray()
        for size, at_once in pieces:
            sent += (data := random_bytes(size, f"{size}"))
            assert made.sendall(data) == size
            encrypted = taken_from(made) if at_once else []
            received += arrived(client, encrypted)
        assert received + arrived(client, taken_from(made)) == sent

    check()


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest.mark.parametrize("size", [1, 400, 100_000])
@pytest.mark.parametrize("expected", [0, 2048])
def test_what_waited_for_the_first_answer_goes_with_it(
    known: taddons.context, version: int, size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "_WAITING", expected)
    trusting = SSL.Context(SSL.TLS_CLIENT_METHOD)
    trusting.set_min_proto_version(version)
    trusting.set_max_proto_version(version)
    for straight in (True, False):
        client = SSL.Connection(trusting)
        client.set_connect_state()
        made = handshakes(known).connection(start(known))
        assert made is not None
        shake_hands(client, made)
        assert taken_from(made) == []
        data = random_bytes(size)
        if straight:
            encrypted = [bytes(made.encrypt(data))]
        else:
            made.sendall(data)
            encrypted = taken_from(made)
        assert arrived(client, encrypted) == data
        assert taken_from(made) == []


def shake_hands(client: SSL.Connection, made: SSL.Connection) -> None:
    for _ in range(3):
        for one, other in ((client, made), (made, client)):
            with contextlib.suppress(SSL.WantReadError):
                one.do_handshake()
            for data in taken_from(one):
                other.bio_write(data)


def taken_from(connection: SSL.Connection) -> list[bytes]:
    """As mitmproxy takes it: until there is no more."""
    return list(iter_until(SSL.WantReadError, lambda: bytes(connection.bio_read(65535))))


def arrived(client: SSL.Connection, encrypted: list[bytes]) -> bytes:
    for data in encrypted:
        client.bio_write(data)
    return b"".join(iter_until(SSL.WantReadError, lambda: client.recv(65535)))


def iter_until(end: type[Exception], call: Callable[[], bytes]) -> Iterator[bytes]:
    with contextlib.suppress(end):
        while True:
            yield call()


@pytest.mark.parametrize("sni", [None, "example.com", "auth.docker.io", "REGISTRY-1.docker.io"])
def test_name_that_is_not_the_tunnels_is_left_to_mitmproxy(known: taddons.context, sni: str | None) -> None:
    """A client could make us keep a context for each name that it can think of."""
    assert handshakes(known).connection(start(known, sni)) is None


def test_of_all_spellings_of_a_host_one_has_a_context(known: taddons.context) -> None:
    """A client could make us keep thousands."""
    name = "ReGiStRy-1.docker.io"
    assert handshakes(known).connection(start(known, name, (name, 443))) is None


def test_host_that_is_not_ours_is_left_to_mitmproxy(known: taddons.context) -> None:
    assert handshakes(known).connection(start(known, "example.com", ("example.com", 443))) is None
    assert handshakes(known).connection(start(known, HUB_HOST, (HUB_HOST, 444))) is None


@pytest.mark.parametrize(
    "change",
    [
        {"http2": True},
        {"upstream_cert": True},
        {"add_upstream_certs_to_client_chain": True, "upstream_cert": True},
        {"request_client_cert": True},
        {"ciphers_client": "ECDHE-RSA-AES128-GCM-SHA256"},
        {"tls_version_client_min": "TLS1_3"},
        {"tls_version_client_max": "TLS1_2"},
        {"tls_ecdh_curve_client": "secp256r1"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_option_that_says_how_is_left_to_mitmproxy(known: taddons.context, change: dict[str, Any]) -> None:
    assert handshakes(known).connection(start(known)) is not None
    known.options.update(**change)
    assert handshakes(known).connection(start(known)) is None


def test_connection_for_which_a_script_chose_ciphers_is_left_to_mitmproxy(known: taddons.context) -> None:
    hello = start(known)
    hello.context.client.cipher_list = ["ECDHE-RSA-AES128-GCM-SHA256"]
    assert handshakes(known).connection(hello) is None


# -- the program


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with proxy.running() as running:
        yield running
        running.check()


def shake(product: Product, host: str, trust: ssl.SSLContext, name: str | None = None) -> ssl.SSLSocket:
    return trust.wrap_socket(product.tunnel(host, 443), server_hostname=name or host)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("host", [HUB_HOST, TOKEN_HOST])
def test_each_host_has_its_own_certificate_each_time(rig: Rig, host: str, version: ssl.TLSVersion) -> None:
    trust = rig.product.trust()
    trust.minimum_version = trust.maximum_version = version
    for _ in range(2):
        with shake(rig.product, host, trust) as client:
            certificate = client.getpeercert() or {}
            assert ("DNS", host) in certificate["subjectAltName"]
            assert certificate["issuer"] != certificate["subject"]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([], None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["http/1.0"], "http/1.0")],
)
def test_protocol_is_http_1_also_where_the_client_would_rather_have_2(
    rig: Rig, offered: list[str], chosen: str | None
) -> None:
    trust = rig.product.trust()
    trust.set_alpn_protocols(offered)
    with shake(rig.product, HUB_HOST, trust) as client:
        assert client.selected_alpn_protocol() == chosen


def test_client_that_does_not_trust_us_is_told_in_the_log(rig: Rig) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(rig.product, HUB_HOST, ssl.create_default_context())
    rig.product.wait_for_log("does not trust the proxy's certificate")


def test_version_that_the_user_wants_is_asked_for(hub: Hub) -> None:
    with proxy.running(hub, tls_version_client_min="TLS1_3") as rig:
        old = rig.product.trust()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            shake(rig.product, HUB_HOST, old)
        with shake(rig.product, HUB_HOST, rig.product.trust()) as client:
            assert client.version() == "TLSv1.3"
