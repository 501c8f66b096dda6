"""The name constraints of the CA, verified by real clients: Go's TLS (skopeo) and OpenSSL (curl)."""

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
from support.processes import run
from support.program import HUB_HOST, TOKEN_HOST
from support.required import require

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120, func_only=True)]

OTHER_HOSTS = ("registry.example.com", "docker.io.example.com", "ghcr.io")
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
def ca_directory(tmp_path: Path) -> Path:
    """A directory with the CA that the program makes for Docker Hub."""
    ensure_ca(tmp_path, [HUB_HOST, TOKEN_HOST], datetime.now(UTC))
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted/ca.pem").write_bytes((tmp_path / "mitmproxy-ca-cert.pem").read_bytes())
    return tmp_path


def server_context(ca_directory: Path, host: str) -> ssl.SSLContext:
    """Return the context of a server with a certificate for `host`, signed with the stolen key of the CA."""
    pem = (ca_directory / KEY_FILE).read_bytes()
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
    chain = ca_directory / f"{host}.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private = own.private_bytes(serialization.Encoding.PEM, *form)
    chain.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context


@contextmanager
def proxy_with(context: ssl.SSLContext) -> Iterator[str]:
    """Run a proxy that answers every CONNECT itself, with that certificate; yields its address."""

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


def skopeo_messages(ca_directory: Path, proxy: str, host: str) -> str:
    """Return the messages of skopeo when it fails to inspect an image of `host`."""
    environment = {"HTTPS_PROXY": proxy, "SSL_CERT_DIR": str(ca_directory / "trusted"), "SSL_CERT_FILE": "/dev/null"}
    return run("skopeo", "inspect", f"docker://{host}/library/app", env=environment, fails=True)


def curl(ca_directory: Path, proxy: str, host: str, *, fails: bool) -> str:
    """Return the status that curl gets from `host`, or with `fails` its messages."""
    options = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-x", proxy]
    options += ["--cacert", str(ca_directory / "mitmproxy-ca-cert.pem")]
    return run("curl", *options, f"https://{host}/v2/", fails=fails)


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_go_client_refuses_a_host_outside_the_constraints(ca_directory: Path, host: str) -> None:
    require("skopeo")
    with proxy_with(server_context(ca_directory, host)) as proxy:
        messages = skopeo_messages(ca_directory, proxy, host)
    assert "not permitted by any constraint" in messages
    assert "404" not in messages


def test_go_client_trusts_the_ca_for_the_registry(ca_directory: Path) -> None:
    require("skopeo")
    with proxy_with(server_context(ca_directory, HUB_HOST)) as proxy:
        messages = skopeo_messages(ca_directory, proxy, HUB_HOST)
    assert "x509" not in messages
    assert "404" in messages


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_openssl_client_refuses_a_host_outside_the_constraints(ca_directory: Path, host: str) -> None:
    require("curl")
    with proxy_with(server_context(ca_directory, host)) as proxy:
        messages = curl(ca_directory, proxy, host, fails=True)
    assert "permitted subtree violation" in messages


def test_openssl_client_trusts_the_ca_for_the_registry(ca_directory: Path) -> None:
    require("curl")
    with proxy_with(server_context(ca_directory, HUB_HOST)) as proxy:
        assert curl(ca_directory, proxy, HUB_HOST, fails=False) == "404"
