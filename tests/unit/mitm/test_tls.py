"""TLS with clients: one context for each host, encryption in pieces, and the right certificate for each host."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hubcache.mitm import tls
from hubcache.mitm.interception import Interception
from hubcache.oci.errors import ConfigError
from hubcache.oci.registry import Registry
from hubcache.oci.registry_pattern import RegistryPattern
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL
from OpenSSL._util import lib
from support.mitm import taddons
from support.program import HUB_HOST, TOKEN_HOST, Program, running_program
from support.standin import Hub, random_bytes
from support.standin import tls as certificates
from support.tls_pair import VERSIONS, arrived, established, mitmproxy_fixture, start, taken_from, tls_contexts

known = mitmproxy_fixture()


def test_key_with_a_passphrase_is_refused_and_no_terminal_is_asked(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    made, _ = certificates.make(tmp_path, ["localhost"])
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    path = tmp_path / "mirror.pem"
    path.write_bytes(made.read_bytes() + encrypted)
    with pytest.raises(ConfigError, match="without a passphrase"):
        tls.load_mirror_certificate(path)


def test_fastest_cipher_of_a_client_is_used(known: taddons.context) -> None:
    client, _ = established(known)
    assert client.get_cipher_name() == "TLS_AES_128_GCM_SHA256"


def test_connections_to_one_host_share_a_context_and_hosts_do_not(known: taddons.context) -> None:
    contexts = tls_contexts(known)
    one, two = contexts.connection_for_hello(start(known)), contexts.connection_for_hello(start(known))
    other = contexts.connection_for_hello(start(known, TOKEN_HOST, (TOKEN_HOST, 443)))
    assert one is not None
    assert two is not None
    assert other is not None
    assert one is not two
    assert one.get_context() is two.get_context()
    assert other.get_context() is not one.get_context()


@pytest.mark.parametrize("version", VERSIONS)
def test_pieces_of_any_size_arrive(known: taddons.context, version: int) -> None:
    client, made = established(known, version)

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


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1, 400, 100_000])
@pytest.mark.parametrize("expected", [0, 2048])
def test_session_tickets_are_sent_with_the_first_answer(
    known: taddons.context, version: int, size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_PENDING", expected)
    for straight in (True, False):
        client, made = established(known, version)
        assert taken_from(made) == []
        data = random_bytes(size)
        if straight:
            encrypted = [bytes(made.encrypt(data))]
        else:
            made.sendall(data)
            encrypted = taken_from(made)
        assert arrived(client, encrypted) == data
        assert taken_from(made) == []


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's socket, and the program's, which does not block and takes little at once."""
    theirs, own = socket.socketpair()
    with theirs, own:
        theirs.settimeout(10)
        own.setblocking(False)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
        yield theirs, own


@pytest.mark.parametrize("version", VERSIONS)
def test_chunk_that_a_socket_does_not_take_at_once_is_sent_in_parts(
    known: taddons.context, version: int, sockets: tuple[socket.socket, socket.socket]
) -> None:
    client, made = established(known, version)
    theirs, own = sockets
    chunks = [random_bytes(size, f"{size}") for size in (1, 300_000, 16_384, 100_001)]
    received = arrived(client, [bytes(made.encrypt(b"head"))])
    made.attach_socket(own.fileno())
    for chunk in chunks:
        while not made.write_to_socket(chunk):
            received += arrived(client, [theirs.recv(1 << 20)])
    made.detach_socket()
    own.shutdown(socket.SHUT_WR)
    received += arrived(client, list(iter(lambda: theirs.recv(1 << 20), b"")))
    assert received == b"head" + b"".join(chunks)
    assert arrived(client, [bytes(made.encrypt(b"next"))]) == b"next"


@pytest.mark.parametrize("version", VERSIONS)
def test_ciphertext_received_while_attached_is_decrypted_afterwards(
    known: taddons.context, version: int, sockets: tuple[socket.socket, socket.socket]
) -> None:
    client, made = established(known, version)
    client.sendall(b"one")
    [first] = taken_from(client)
    client.sendall(b"two")
    [second] = taken_from(client)
    assert made.decrypt(first[:7]) == (b"", False)
    made.encrypt(b"head")
    made.attach_socket(sockets[1].fileno())
    assert made.decrypt(first[7:] + second[:3]) == (b"", False)
    assert made.decrypt(second[3:]) == (b"", False)
    made.detach_socket()
    assert made.decrypt(b"") == (b"onetwo", False)
    client.shutdown()
    assert made.decrypt(taken_from(client)[0]) == (b"", True)


def test_write_to_a_closed_socket_raises_and_leaves_no_error_for_others(
    known: taddons.context, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """OpenSSL has one queue of errors for all connections of a thread."""
    _, made = established(known)
    theirs, own = sockets
    made.encrypt(b"head")
    made.attach_socket(own.fileno())
    theirs.close()
    with pytest.raises(SSL.Error):
        made.write_to_socket(random_bytes(100_000))
    assert lib.ERR_peek_error() == 0
    made.detach_socket()


@pytest.mark.parametrize("sni", [None, "example.com", "auth.docker.io", "REGISTRY-1.docker.io"])
def test_name_other_than_the_tunnels_is_left_to_mitmproxy(known: taddons.context, sni: str | None) -> None:
    """A client could have any number of contexts made."""
    assert tls_contexts(known).connection_for_hello(start(known, sni)) is None


def test_one_spelling_of_a_host_has_a_context(known: taddons.context) -> None:
    """A client could have thousands of contexts made."""
    name = "ReGiStRy-1.docker.io"
    assert tls_contexts(known).connection_for_hello(start(known, name, (name, 443))) is None


def test_contexts_of_hosts_below_a_domain_are_bounded(known: taddons.context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "MAX_CONTEXTS", 2)
    interception = Interception([Registry.parse(HUB_HOST)], [RegistryPattern.parse("*.example.com")])
    contexts = tls.TlsContexts(interception, known.master.addons.get("tlsconfig").get_cert)
    names = [f"r{number}.example.com" for number in range(3)]
    for name in names:
        assert contexts.connection_for_hello(start(known, name, (name, 443))) is not None
    assert [contexts.connection(name) is not None for name in names] == [False, True, True]


def test_other_host_is_left_to_mitmproxy(known: taddons.context) -> None:
    assert tls_contexts(known).connection_for_hello(start(known, "example.com", ("example.com", 443))) is None
    assert tls_contexts(known).connection_for_hello(start(known, HUB_HOST, (HUB_HOST, 444))) is None


def test_connection_for_which_a_script_chose_ciphers_is_left_to_mitmproxy(known: taddons.context) -> None:
    hello = start(known)
    hello.context.client.cipher_list = ["ECDHE-RSA-AES128-GCM-SHA256"]
    assert tls_contexts(known).connection_for_hello(hello) is None


# -- the program


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with running_program() as running:
        yield running
        running.assert_no_errors()


def shake(program: Program, host: str, trust: ssl.SSLContext, name: str | None = None) -> ssl.SSLSocket:
    return trust.wrap_socket(program.tunnel(host, 443), server_hostname=name or host)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("host", [HUB_HOST, TOKEN_HOST])
def test_each_host_has_its_own_certificate(program: Program, host: str, version: ssl.TLSVersion) -> None:
    trust = program.ssl_context()
    trust.minimum_version = trust.maximum_version = version
    for _ in range(2):
        with shake(program, host, trust) as client:
            certificate = client.getpeercert() or {}
            assert ("DNS", host) in certificate["subjectAltName"]
            assert certificate["issuer"] != certificate["subject"]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([], None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["http/1.0"], "http/1.0")],
)
def test_protocol_is_http_1_also_for_a_client_that_prefers_2(
    program: Program, offered: list[str], chosen: str | None
) -> None:
    trust = program.ssl_context()
    trust.set_alpn_protocols(offered)
    with shake(program, HUB_HOST, trust) as client:
        assert client.selected_alpn_protocol() == chosen


def test_client_that_does_not_trust_the_ca_is_logged(program: Program) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(program, HUB_HOST, ssl.create_default_context())
    program.wait_for_log("does not trust the proxy's certificate")


def test_tls_version_of_the_option_is_required(hub: Hub) -> None:
    with running_program(hub, tls_version_client_min="TLS1_3") as program:
        old = program.ssl_context()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            shake(program, HUB_HOST, old)
        with shake(program, HUB_HOST, program.ssl_context()) as client:
            assert client.version() == "TLSv1.3"
