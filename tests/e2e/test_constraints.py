"""What the CA may vouch for, as real clients see it: Go's TLS (skopeo) and OpenSSL's (curl)."""

import contextlib
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hubcache.operate.ca import KEY_FILE, ensure_ca
from support.processes import require, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120, func_only=True)]

PERMITTED, OTHERS = "registry-1.docker.io", ("registry.example.com", "docker.io.example.com", "ghcr.io")
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A directory with the CA that the program makes for Docker Hub."""
    ensure_ca(tmp_path, [PERMITTED, "auth.docker.io"], datetime.now(UTC))
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted/ca.pem").write_bytes((tmp_path / "mitmproxy-ca-cert.pem").read_bytes())
    return tmp_path


def leaf(authority: Path, host: str) -> ssl.SSLContext:
    """A server with a certificate for `host`, signed by the stolen key of the CA."""
    pem = (authority / KEY_FILE).read_bytes()
    key, issuer = serialization.load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
        .issuer_name(issuer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = authority / f"{host}.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private = own.private_bytes(serialization.Encoding.PEM, *form)
    chain.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context


@contextmanager
def proxy_with(context: ssl.SSLContext) -> Iterator[str]:
    """A proxy that answers every CONNECT itself, with that certificate; gives its address."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            with contextlib.suppress(OSError), context.wrap_socket(self.connection, server_side=True) as inside:
                inside.recv(65536)
                inside.sendall(NOT_FOUND)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("host", OTHERS)
def test_clients_of_go_refuse_what_the_ca_may_not_sign(authority: Path, host: str) -> None:
    require("skopeo")
    with proxy_with(leaf(authority, host)) as proxy:
        said = skopeo(authority, proxy, host)
    assert "not permitted by any constraint" in said
    assert "404" not in said


def test_clients_of_go_trust_it_for_the_registry(authority: Path) -> None:
    require("skopeo")
    with proxy_with(leaf(authority, PERMITTED)) as proxy:
        said = skopeo(authority, proxy, PERMITTED)
    assert "x509" not in said
    assert "404" in said


def skopeo(authority: Path, proxy: str, host: str) -> str:
    """What skopeo says when it fails to see an image there."""
    command = f"skopeo inspect docker://{host}/library/app 2>&1 || true"
    environment = {"HTTPS_PROXY": proxy, "SSL_CERT_DIR": str(authority / "trusted"), "SSL_CERT_FILE": "/dev/null"}
    return run("sh", "-c", command, env=environment)


@pytest.mark.parametrize("host", OTHERS)
def test_clients_of_openssl_refuse_what_the_ca_may_not_sign(authority: Path, host: str) -> None:
    require("curl")
    with proxy_with(leaf(authority, host)) as proxy:
        said = curl(authority, proxy, host)
    assert "permitted subtree violation" in said


def test_clients_of_openssl_trust_it_for_the_registry(authority: Path) -> None:
    require("curl")
    with proxy_with(leaf(authority, PERMITTED)) as proxy:
        assert curl(authority, proxy, PERMITTED) == "404"


def curl(authority: Path, proxy: str, host: str) -> str:
    """The status that curl gets there, or why it gets none."""
    trust = f"--cacert {authority}/mitmproxy-ca-cert.pem"
    return run(
        "sh", "-c", f"curl -sS -o /dev/null -w '%{{http_code}}' -x {proxy} {trust} https://{host}/v2/ 2>&1 || true"
    )
