"""Checks of the CA certificate that clients of the proxy must trust."""

from collections.abc import Iterator
from datetime import UTC, datetime

from cryptography import x509

from ...operate import ca
from .finding import Finding, ok, problem, skipped, warning
from .target import Target

_CHECK = "CA certificate"
_RENEW = "move the CA's files away and restart the cache; each client of the proxy must then trust the new certificate"


def check_certificate(target: Target) -> Iterator[Finding]:
    """Check that the certificate exists, is valid, and may sign for the registry; remember it for later checks."""
    where = str(target.ca_file) if target.ca_file is not None else f"http://{target.mirror_name()}/ca.crt"
    if target.ca_file is not None:
        try:
            target.ca_pem = target.ca_file.read_bytes()
        except FileNotFoundError:
            if target.report is None:
                yield skipped(_CHECK, f"{where} does not exist; the first start creates it")
            else:
                yield problem(_CHECK, f"{where} was deleted", "restart the cache, which writes it again from its key")
            return
        except OSError as error:
            yield skipped(_CHECK, f"{where} cannot be read: {error.strerror}")
            return
    if target.ca_pem is None:
        yield skipped(_CHECK, "it is fetched from the mirror, which does not answer")
        return
    try:
        certificate = x509.load_pem_x509_certificate(target.ca_pem)
    except ValueError:
        target.ca_pem = None
        yield problem(_CHECK, f"{where} contains no certificate", _RENEW)
        return
    yield _judged(certificate, where, target.registry, datetime.now(UTC))


def _judged(certificate: x509.Certificate, where: str, registry: str, now: datetime) -> Finding:
    """Return the finding about validity and constraints."""
    until = certificate.not_valid_after_utc
    permitted = ca.permitted_names(certificate)
    if now >= until:
        return problem(_CHECK, f"{where} expired on {until:%Y-%m-%d}", _RENEW)
    if now < certificate.not_valid_before_utc:
        return problem(
            _CHECK,
            f"{where} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, which is in the future",
            "set the clock of this machine",
        )
    if not ca.permits(certificate, registry.partition(":")[0]):
        return problem(_CHECK, f"{where} cannot sign for {registry}, only for {', '.join(permitted or ())}", _RENEW)
    if until - now < ca.WARNING_TIME:
        return warning(_CHECK, f"{where} expires in {(until - now).days} days", _RENEW)
    if permitted is None:
        return warning(
            _CHECK,
            f"{where} can sign for any host",
            "start without mitmproxy's option confdir, so that the cache makes a CA for its registries only",
        )
    return ok(_CHECK, f"{where} is valid until {until:%Y-%m-%d} and signs for {', '.join(permitted)}")


def issuer_of(der: bytes) -> str:
    """Return who signed a certificate, for messages."""
    try:
        return x509.load_der_x509_certificate(der).issuer.rfc4514_string()
    except ValueError:
        return "an unreadable certificate"
