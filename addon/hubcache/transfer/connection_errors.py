"""Describes in words why a request to an upstream got no response, and what the operator can do about it."""

import errno
import os
import ssl

import aiohttp

_CERTIFICATE_OF_CA = frozenset({2, 18, 19, 20, 21})
"""OpenSSL's verification results (X509_V_ERR_...) for a certificate that no trusted CA has signed."""
_NOT_YET_VALID, _EXPIRED = 9, 10


def describe(error: aiohttp.ClientError | TimeoutError) -> str:
    """Return the cause of the error, followed by the option or setting that helps, if there is one."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return _describe_certificate(error.certificate_error)
        case aiohttp.ClientConnectorDNSError():
            cause = error.os_error.strerror or "no address found"
            return f"its name cannot be resolved ({cause}); check the name and this machine's DNS settings"
        case aiohttp.ClientConnectorSSLError():
            return (
                f"TLS failed ({_reason(error.os_error)}); for a registry that speaks plain HTTP, set "
                "hubcache_registries=HOST=http://HOST:PORT"
            )
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ECONNREFUSED:
            return "connection refused; nothing listens on this port, or a firewall refuses connections"
        case aiohttp.ConnectionTimeoutError():
            return "time-out of the connection; a firewall may drop its packets, or the host is down"
        case TimeoutError():
            return "time-out; no response came"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without a response"
        case aiohttp.ClientOSError(__cause__=ssl.SSLError() as cause):  # whose number is one of OpenSSL
            return f"TLS failed ({_reason(cause)})"
        case aiohttp.ClientOSError() if error.errno is not None:
            # The message of the error itself may contain addresses of other hosts.
            return os.strerror(error.errno).lower()
        case aiohttp.ClientResponseError():
            return "its response is not valid HTTP"
        case _:
            return type(error).__name__


def _describe_certificate(error: Exception) -> str:
    """Return which certificate was refused for which reason, and what helps."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate does not belong to this host name"
    cause = f"its certificate is not trusted ({error.verify_message.rstrip('.')})"
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        return f"{cause}; check this machine's clock"
    if error.verify_code in _CERTIFICATE_OF_CA:
        return (
            f"{cause}; if the network inspects TLS or the registry has a private CA, set "
            "ssl_verify_upstream_trusted_ca to a PEM file with all CAs to trust"
        )
    return cause


def _reason(error: OSError) -> str:
    """Return OpenSSL's reason in lower case, such as 'wrong version number'."""
    reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
    return str(reason).replace("_", " ").lower()
