"""Creates and checks the certificate authority of the proxy listener, in the files that mitmproxy reads.

Clients must trust it, so its name constraints limit what a stolen key can do: it can sign for the domains of the
registries only. The program never replaces an existing CA, because every client would fail until it trusts the new one.
"""

import ipaddress
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

from ..oci.errors import ConfigError
from ..oci.registrable_domain import registrable_domain

KEY_FILE = "mitmproxy-ca.pem"
CERTIFICATE_FILE = "mitmproxy-ca-cert.pem"

VALIDITY = timedelta(days=3650)
SKEW = timedelta(days=1)
"""The validity of the certificate begins this long before its creation, for clients whose clocks are slow."""

WARNING_TIME = timedelta(days=90)
"""A warning is logged when the certificate expires within this time."""

_HUB_DOMAINS = ("docker.io", "docker.com")
_MITMPROXY_NAME = x509.Name(
    [x509.NameAttribute(kind, "mitmproxy") for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)]
)
_ALL_ADDRESSES = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA in use; `warning` is one line for the log when the operator should renew or replace it."""

    certificate_file: Path
    warning: str | None
    expires: datetime


def constrained_domains(hosts: Iterable[str]) -> list[str]:
    """Return the domains or addresses that a new CA is permitted to sign for: the registrable domain of each host.

    A registry and its token service share it (registry-1.docker.io, auth.docker.io). Docker Hub also has docker.com.
    """
    domains: set[str] = set()
    for host in hosts:
        if _address(host) is not None:
            domains.add(host)
        else:
            domain = registrable_domain(host)
            domains.update(_HUB_DOMAINS if domain in _HUB_DOMAINS else (domain,))
    return sorted(domains)


def ensure_ca(directory: Path, hosts: Sequence[str], now: datetime) -> Authority:
    """Load the CA in `directory` or create one there; raises `ConfigError` when it cannot sign for `hosts` at `now`.

    Call this before mitmproxy reads the directory: if there is no CA, mitmproxy creates one that can sign for any site.
    """
    key_file = directory / KEY_FILE
    try:
        if not key_file.exists():
            _create(directory, constrained_domains(hosts), now)
        pem = key_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"CA {key_file}: {error.strerror or error}") from error
    certificate = _load(key_file, pem)
    is_unconstrained = _check(key_file, certificate, hosts, now)
    certificate_file = directory / CERTIFICATE_FILE
    public = certificate.public_bytes(serialization.Encoding.PEM)
    try:
        if not certificate_file.exists() or certificate_file.read_bytes() != public:
            _write(certificate_file, public, 0o644, replace=True)
    except OSError as error:
        raise ConfigError(f"CA {certificate_file}: {error.strerror or error}") from error
    remaining = certificate.not_valid_after_utc - now
    warning = None
    if remaining < WARNING_TIME:
        warning = f"CA {key_file} expires in {remaining.days} days: {_renewal(key_file)}"
    elif is_unconstrained and certificate.issuer == _MITMPROXY_NAME:
        # When the user sets confdir, mitmproxy has created its own CA there before this program was loaded.
        warning = (
            f"CA {key_file} was created by mitmproxy and can sign for any site: to use one for the registries only, "
            f"move it away and start without setting confdir; every client must then trust the new {CERTIFICATE_FILE}"
        )
    return Authority(certificate_file, warning, certificate.not_valid_after_utc)


def describe(directory: Path) -> str:
    """Return what the CA in `directory` can sign, and how to change that, in one line; the CA was checked before."""
    key_file = directory / KEY_FILE
    names = permitted_names(x509.load_pem_x509_certificate((directory / CERTIFICATE_FILE).read_bytes()))
    limit = "any host" if names is None else ", ".join(names)
    return (
        f"can sign for {limit}; registries elsewhere need a new CA: move {key_file} away, start again, and have every "
        "client of the proxy trust the new certificate"
    )


def permitted_names(certificate: x509.Certificate) -> list[str] | None:
    """Return the domains and addresses that a CA may sign for; None if it has no name constraints."""
    constraints = _constraints_of(certificate)
    return None if constraints is None else [str(name.value) for name in constraints.permitted_subtrees or ()]


def permits(certificate: x509.Certificate, host: str) -> bool:
    """Whether the name constraints of a CA permit a DNS name or an address."""
    constraints = _constraints_of(certificate)
    return constraints is None or _permits(constraints, host)


def _constraints_of(certificate: x509.Certificate) -> x509.NameConstraints | None:
    values = (extension.value for extension in certificate.extensions)
    return next((value for value in values if isinstance(value, x509.NameConstraints)), None)


def _renewal(key_file: Path) -> str:
    return f"to renew it, move {key_file} away and start again; every client must then trust the new {CERTIFICATE_FILE}"


def _create(directory: Path, domains: Sequence[str], now: datetime) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "hubcache"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"hubcache {now:%Y-%m-%d} {secrets.token_hex(4)}"),
        ]
    )
    usage = {
        "digital_signature": False,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "key_cert_sign": True,
        "crl_sign": True,
        "encipher_only": False,
        "decipher_only": False,
    }
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_constraints(domains), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(directory / KEY_FILE, private + certificate.public_bytes(serialization.Encoding.PEM), 0o600, replace=False)


def _constraints(domains: Sequence[str]) -> x509.NameConstraints:
    """Return constraints that permit `domains` only.

    Without a permitted subtree of its type, every name of that type is permitted (RFC 5280 section 4.2.1.10). So all
    addresses are excluded when no address is permitted, and `invalid`, which cannot be registered (RFC 6761), is the
    permitted DNS name when there is no other.
    """
    addresses = [address for address in map(_address, domains) if address is not None]
    # mitmproxy repeats an address in the common name, which OpenSSL checks as a host name.
    names = [domain for domain in domains if not isinstance(_address(domain), ipaddress.IPv6Address)]
    permitted: list[x509.GeneralName] = [x509.DNSName(name) for name in names or ("invalid",)]
    permitted += [x509.IPAddress(ipaddress.ip_network(address)) for address in addresses]
    excluded = [x509.IPAddress(network) for network in _ALL_ADDRESSES] if not addresses else None
    return x509.NameConstraints(permitted, excluded)


def _write(path: Path, data: bytes, mode: int, *, replace: bool) -> None:
    """Write `data` to `path` atomically; without `replace`, keep a file that another process has created."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        if replace:
            temporary.replace(path)
        else:
            try:
                path.hardlink_to(temporary)
            except FileExistsError:
                return
    finally:
        temporary.unlink(missing_ok=True)


def _load(key_file: Path, pem: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key: PrivateKeyTypes = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        # The key is encrypted: mitmproxy decrypts it with its option cert_passphrase, and reports when it cannot.
        return certificate
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"CA {key_file} does not contain a private key and a certificate in PEM: {_renewal(key_file)}"
        ) from error
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"CA {key_file}: private key and certificate do not match: {_renewal(key_file)}")
    return certificate


def _check(key_file: Path, certificate: x509.Certificate, hosts: Sequence[str], now: datetime) -> bool:
    """Raise `ConfigError` unless clients accept leaves for `hosts`; return whether the CA has no name constraints."""
    if certificate.not_valid_after_utc <= now:
        raise ConfigError(f"CA {key_file} expired on {certificate.not_valid_after_utc:%Y-%m-%d}: {_renewal(key_file)}")
    constraints = None
    is_ca, may_sign = False, True
    try:
        for extension in certificate.extensions:
            if isinstance(extension.value, x509.BasicConstraints):
                is_ca = extension.value.ca
            elif isinstance(extension.value, x509.KeyUsage):
                may_sign = extension.value.key_cert_sign
            elif isinstance(extension.value, x509.NameConstraints):
                constraints = extension.value
    except (ValueError, x509.DuplicateExtension) as error:
        raise ConfigError(f"CA {key_file} has a malformed extension: {_renewal(key_file)}") from error
    if not is_ca or not may_sign:
        raise ConfigError(f"CA {key_file} is not a CA certificate that can sign certificates: {_renewal(key_file)}")
    missing = [host for host in hosts if constraints is not None and not _permits(constraints, host)]
    if missing:
        raise ConfigError(f"CA {key_file} cannot sign for {', '.join(missing)}: {_renewal(key_file)}")
    return constraints is None


def _permits(constraints: x509.NameConstraints, host: str) -> bool:
    """Whether the constraints permit a DNS name or an address (RFC 5280 section 4.2.1.10)."""
    kind = x509.DNSName if _address(host) is None else x509.IPAddress
    permitted = [name for name in constraints.permitted_subtrees or () if isinstance(name, kind)]
    excluded = [name for name in constraints.excluded_subtrees or () if isinstance(name, kind)]
    if any(_within(host, name) for name in excluded):
        return False
    return not permitted or any(_within(host, name) for name in permitted)


def _within(host: str, name: x509.GeneralName) -> bool:
    address = _address(host)
    if isinstance(name, x509.IPAddress):
        return address is not None and address in ipaddress.ip_network(str(name.value))
    base = str(name.value).lower()
    # A leading dot is common though not in the RFC; OpenSSL and Go then require at least one more label.
    return address is None and (not base or host == base or host.endswith(f".{base.removeprefix('.')}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
