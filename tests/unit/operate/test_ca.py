"""The CA: its files, the hosts for which OpenSSL accepts its certificates, and the errors for an unusable one."""

import ipaddress
import multiprocessing
import ssl
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hubcache.oci.errors import ConfigError
from hubcache.operate.ca import CERTIFICATE_FILE, KEY_FILE, VALIDITY, constrained_domains, describe, ensure_ca
from mitmproxy.certs import CertStore

HUB = ["registry-1.docker.io", "auth.docker.io"]
NOW = datetime.now(UTC).replace(microsecond=0)
PLAIN = serialization.NoEncryption()


def own_ca(
    directory: Path,
    *extensions: x509.ExtensionType,
    is_ca: bool = True,
    signs: bool = True,
    encryption: serialization.KeySerializationEncryption = PLAIN,
) -> bytes:
    """Write a CA that the user created to the directory; return the bytes of its file."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example Corp")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=365))
    builder = builder.add_extension(x509.BasicConstraints(is_ca, None), critical=True)
    usage = x509.KeyUsage(True, False, False, False, False, signs, False, False, False)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    pem = private + certificate.public_bytes(serialization.Encoding.PEM)
    directory.mkdir(exist_ok=True)
    (directory / KEY_FILE).write_bytes(pem)
    return pem


def permitting(*names: str) -> x509.NameConstraints:
    return x509.NameConstraints([x509.DNSName(name) for name in names], None)


def general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def handshake(directory: Path, host: str) -> None:
    """Do a TLS handshake with a leaf that mitmproxy signs; raise the error of an OpenSSL client that trusts the CA."""
    entry = CertStore.from_store(directory, "mitmproxy", 2048).get_cert(host, x509.GeneralNames([general_name(host)]))
    leaf = directory / "leaf.pem"
    key = entry.privatekey.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, PLAIN)
    leaf.write_bytes(key + entry.cert.to_pem())
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(leaf)
    client_side = ssl.create_default_context(cafile=str(directory / CERTIFICATE_FILE))
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    open_ends = [client, server]
    while open_ends:
        end = open_ends.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            open_ends.append(end)


def error_of(directory: Path, hosts: Sequence[str], now: datetime = NOW) -> str:
    """Return the one-line error for an unusable CA, whose file must stay unchanged."""
    before = (directory / KEY_FILE).read_bytes()
    with pytest.raises(ConfigError) as caught:
        ensure_ca(directory, hosts, now)
    message = str(caught.value)
    assert "\n" not in message
    assert f"move {directory / KEY_FILE} away" in message
    assert "every client must then trust the new" in message
    assert (directory / KEY_FILE).read_bytes() == before
    return message


def loaded(directory: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / CERTIFICATE_FILE).read_bytes())


class TestDomains:
    """Domains that a new CA is permitted to sign for."""

    @pytest.mark.parametrize(
        ("host", "domains"),
        [
            ("registry-1.docker.io", ["docker.com", "docker.io"]),
            ("ghcr.io", ["ghcr.io"]),
            ("registry.example.co.uk", ["example.co.uk"]),
            ("docker.elastic.co", ["elastic.co"]),
            ("images.build.corp.internal", ["corp.internal"]),
            ("localhost", ["localhost"]),
            ("192.0.2.1", ["192.0.2.1"]),
            ("2001:db8::1", ["2001:db8::1"]),
        ],
    )
    def test_domain_of_a_host_is_its_registrable_one(self, host: str, domains: list[str]) -> None:
        assert constrained_domains([host]) == domains
        assert constrained_domains(domains) == domains

    def test_domain_of_several_hosts_is_listed_once(self) -> None:
        assert constrained_domains([*HUB, "quay.io", "cdn.quay.io"]) == ["docker.com", "docker.io", "quay.io"]


class TestNew:
    """A CA created at the first start."""

    def test_description_says_what_it_can_sign_and_how_to_change_that(self, tmp_path: Path) -> None:
        ensure_ca(tmp_path, [*HUB, "example.com", "10.0.0.1"], NOW)
        text = describe(tmp_path)
        assert text.startswith("can sign for 10.0.0.1, docker.com, docker.io, example.com, 10.0.0.1/32; ")
        assert f"move {tmp_path / KEY_FILE} away" in text
        assert "\n" not in text

    def test_certificate_is_valid_for_ten_years_and_has_a_p256_key(self, tmp_path: Path) -> None:
        authority = ensure_ca(tmp_path / "certs", HUB, NOW)
        certificate = loaded(tmp_path / "certs")
        assert (authority.certificate_file, authority.warning) == (tmp_path / "certs" / CERTIFICATE_FILE, None)
        assert certificate.not_valid_before_utc == NOW - timedelta(days=1)
        assert certificate.not_valid_after_utc == NOW + timedelta(days=3650)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert isinstance(key.curve, ec.SECP256R1)
        assert {type(extension.value): extension.critical for extension in certificate.extensions} == {
            x509.BasicConstraints: True,
            x509.KeyUsage: True,
            x509.NameConstraints: True,
            x509.SubjectKeyIdentifier: False,
        }
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0

    def test_key_is_readable_by_its_owner_only(self, tmp_path: Path) -> None:
        ensure_ca(tmp_path, HUB, NOW)
        assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
        assert b"PRIVATE KEY" in (tmp_path / KEY_FILE).read_bytes()
        assert b"PRIVATE KEY" not in (tmp_path / CERTIFICATE_FILE).read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == [CERTIFICATE_FILE, KEY_FILE]

    def test_mitmproxy_uses_the_certificate(self, tmp_path: Path) -> None:
        ensure_ca(tmp_path, HUB, NOW)
        store = CertStore.from_store(tmp_path, "mitmproxy", 2048)
        assert store.default_ca.to_cryptography() == loaded(tmp_path)

    def test_existing_key_is_used_and_a_lost_certificate_file_is_restored(self, tmp_path: Path) -> None:
        ensure_ca(tmp_path, HUB, NOW)
        first = loaded(tmp_path)
        (tmp_path / CERTIFICATE_FILE).unlink()
        ensure_ca(tmp_path, HUB, NOW + timedelta(days=1))
        assert loaded(tmp_path) == first

    def test_processes_that_start_at_once_create_one_ca(self, tmp_path: Path) -> None:
        with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
            results = [pool.submit(ensure_ca, tmp_path, HUB, NOW) for _ in range(6)]
            assert {future.result().certificate_file for future in results} == {tmp_path / CERTIFICATE_FILE}
        assert x509.load_pem_x509_certificate((tmp_path / KEY_FILE).read_bytes()) == loaded(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [CERTIFICATE_FILE, KEY_FILE]

    def test_directory_that_cannot_be_written_is_an_error_of_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "certs").write_bytes(b"")
        with pytest.raises(ConfigError, match=r"^CA .*certs.mitmproxy-ca\.pem: [A-Z][a-z ]+$"):
            ensure_ca(tmp_path / "certs", HUB, NOW)


class TestSigning:
    """Leaves that OpenSSL accepts and rejects."""

    @pytest.mark.parametrize(
        ("hosts", "host"),
        [
            (HUB, "registry-1.docker.io"),
            (HUB, "auth.docker.io"),
            (["registry.corp.internal"], "registry.corp.internal"),
            (["192.0.2.1"], "192.0.2.1"),
            (["2001:db8::1"], "2001:db8::1"),
            ([*HUB, "192.0.2.1"], "192.0.2.1"),
            ([*HUB, "192.0.2.1"], "auth.docker.io"),
        ],
    )
    def test_leaf_for_a_registry_is_accepted(self, tmp_path: Path, hosts: list[str], host: str) -> None:
        ensure_ca(tmp_path, hosts, NOW)
        handshake(tmp_path, host)

    @pytest.mark.parametrize(
        ("hosts", "host"),
        [
            (HUB, "example.com"),
            (HUB, "notdocker.io"),
            (HUB, "192.0.2.1"),
            (HUB, "2001:db8::1"),
            (["registry.corp.internal"], "bank.internal"),
            (["192.0.2.1"], "192.0.2.2"),
            (["192.0.2.1"], "2001:db8::1"),
            (["192.0.2.1"], "example.com"),
            (["2001:db8::1"], "example.com"),
        ],
    )
    def test_leaf_for_another_host_is_rejected(self, tmp_path: Path, hosts: list[str], host: str) -> None:
        ensure_ca(tmp_path, hosts, NOW)
        with pytest.raises(ssl.SSLCertVerificationError, match="subtree violation"):
            handshake(tmp_path, host)


class TestExisting:
    """A CA that exists at start."""

    def test_expiry_within_90_days_is_a_warning(self, tmp_path: Path) -> None:
        ensure_ca(tmp_path, HUB, NOW)
        assert ensure_ca(tmp_path, HUB, NOW + VALIDITY - timedelta(days=91)).warning is None
        warning = ensure_ca(tmp_path, HUB, NOW + VALIDITY - timedelta(days=89)).warning
        assert warning is not None
        assert "expires in 89 days" in warning
        assert "every client must then trust the new" in warning

    def test_expired_ca_is_refused(self, tmp_path: Path) -> None:
        ensure_ca(tmp_path, HUB, NOW)
        assert "expired on" in error_of(tmp_path, HUB, NOW + VALIDITY)

    @pytest.mark.parametrize("host", ["ghcr.io", "192.0.2.1", "2001:db8::1"])
    def test_ca_that_cannot_sign_for_a_new_registry_is_refused(self, tmp_path: Path, host: str) -> None:
        ensure_ca(tmp_path, HUB, NOW)
        assert f"cannot sign for {host}:" in error_of(tmp_path, [*HUB, host])

    def test_ca_without_constraints_can_sign_for_all_hosts(self, tmp_path: Path) -> None:
        pem = own_ca(tmp_path)
        hosts = [*HUB, "ghcr.io", "192.0.2.1"]
        assert ensure_ca(tmp_path, hosts, NOW).warning is None
        assert (tmp_path / KEY_FILE).read_bytes() == pem
        handshake(tmp_path, "ghcr.io")

    @pytest.mark.parametrize("names", [HUB, [".docker.io"], ["docker.io"], ["IO"]])
    def test_ca_with_narrow_constraints_is_accepted_when_they_permit_the_hosts(
        self, tmp_path: Path, names: list[str]
    ) -> None:
        own_ca(tmp_path, permitting(*names))
        assert ensure_ca(tmp_path, HUB, NOW).warning is None
        handshake(tmp_path, "registry-1.docker.io")

    @pytest.mark.parametrize(
        "constraints",
        [
            permitting("registry-1.docker.io"),
            permitting("h.docker.io"),
            permitting(".auth.docker.io", "registry-1.docker.io"),
            x509.NameConstraints(None, [x509.DNSName("auth.docker.io")]),
            x509.NameConstraints([x509.DNSName("docker.io")], [x509.DNSName("")]),
        ],
    )
    def test_ca_is_refused_when_openssl_would_reject_its_leaf_for_a_host(
        self, tmp_path: Path, constraints: x509.NameConstraints
    ) -> None:
        own_ca(tmp_path, constraints)
        assert "auth.docker.io:" in error_of(tmp_path, HUB)
        (tmp_path / CERTIFICATE_FILE).write_bytes((tmp_path / KEY_FILE).read_bytes())
        with pytest.raises(ssl.SSLCertVerificationError, match="subtree violation"):
            handshake(tmp_path, "auth.docker.io")

    def test_constraints_on_other_types_of_names_permit_all_hosts(self, tmp_path: Path) -> None:
        own_ca(tmp_path, x509.NameConstraints([x509.RFC822Name("example.com")], None))
        ensure_ca(tmp_path, HUB, NOW)
        handshake(tmp_path, "auth.docker.io")

    def test_certificate_that_is_not_a_ca_is_refused(self, tmp_path: Path) -> None:
        own_ca(tmp_path, is_ca=False)
        assert "is not a CA certificate that can sign certificates" in error_of(tmp_path, HUB)

    def test_ca_whose_key_usage_does_not_permit_signing_is_refused(self, tmp_path: Path) -> None:
        own_ca(tmp_path, signs=False)
        assert "is not a CA certificate that can sign certificates" in error_of(tmp_path, HUB)

    def test_certificate_with_another_key_is_refused(self, tmp_path: Path) -> None:
        key, certificate = own_ca(tmp_path), own_ca(tmp_path)
        begin = b"-----BEGIN CERTIFICATE"
        (tmp_path / KEY_FILE).write_bytes(key.partition(begin)[0] + b"".join(certificate.partition(begin)[1:]))
        assert "private key and certificate do not match" in error_of(tmp_path, HUB)

    @pytest.mark.parametrize("cut", [0, 100, 400])
    def test_damaged_file_is_refused(self, tmp_path: Path, cut: int) -> None:
        pem = own_ca(tmp_path)
        (tmp_path / KEY_FILE).write_bytes(pem[:cut])
        assert "does not contain a private key and a certificate in PEM" in error_of(tmp_path, HUB)

    def test_encrypted_key_is_left_to_mitmproxy(self, tmp_path: Path) -> None:
        own_ca(tmp_path, encryption=serialization.BestAvailableEncryption(b"secret"))
        assert ensure_ca(tmp_path, HUB, NOW).warning is None

    def test_ca_that_mitmproxy_created_is_used_with_a_warning(self, tmp_path: Path) -> None:
        CertStore.create_store(tmp_path, "mitmproxy", 2048)
        warning = ensure_ca(tmp_path, HUB, NOW).warning
        assert warning is not None
        assert "was created by mitmproxy and can sign for any site" in warning
