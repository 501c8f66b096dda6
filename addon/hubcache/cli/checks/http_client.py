"""Requests as a container engine sends them: to the mirror, and through the proxy with the cache's CA."""

import http.client
import json
import re
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from ...oci.media import COMMON_TYPES
from .target import Target

SECONDS = 15.0
"""Time-out of connecting and of each read."""

MAX_BODY = 16 << 20
ACCEPT = {"Accept": ", ".join(COMMON_TYPES), "User-Agent": "hubcache-doctor"}
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_CACHE_STATUS = re.compile(r"hubcache;\s*(hit|fwd=[\w-]+)")


@dataclass(frozen=True, slots=True)
class Response:
    """A response, and the seconds until all of it had arrived."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def origin(self) -> str:
        """Where the cache had the response from, in words, by its `Cache-Status` (RFC 9211)."""
        found = _CACHE_STATUS.search(self.headers.get("Cache-Status", ""))
        if found is None:
            return "passed on"
        return "from the store" if found[1] == "hit" else "from the registry"

    def document(self) -> dict[str, Any]:
        """Return the body as a JSON object; raises `ValueError`."""
        document = json.loads(self.body)
        if not isinstance(document, dict):
            raise ValueError("the answer is no JSON object")
        return document


def mirror_request(target: Target, path: str, headers: dict[str, str] | None = None) -> Response:
    """Return the mirror's response to a GET; raises `OSError` and `HTTPException`."""
    connection = http.client.HTTPConnection(target.host, target.mirror_port, timeout=SECONDS)
    return _request(connection, path, headers)


def proxy_request(target: Target, host: str, path: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response to a GET to an https URL through the proxy; raises `OSError` and `HTTPException`."""
    name, _, port = host.partition(":")
    connection = http.client.HTTPSConnection(
        target.host, target.proxy_port, timeout=SECONDS, context=trusting(target.ca_pem)
    )
    connection.set_tunnel(name, int(port or 443))
    return _request(connection, path, headers)


def trusting(ca_pem: bytes | None) -> ssl.SSLContext:
    """Return a TLS context that trusts this CA and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_pem is not None:
        context.load_verify_locations(cadata=ca_pem.decode())
    return context


def presented_certificate(target: Target, host: str) -> bytes:
    """Return the certificate that a TLS server behind the proxy presents, in DER, without trusting it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    name, _, port = host.partition(":")
    connection = http.client.HTTPConnection(target.host, target.proxy_port, timeout=SECONDS)
    connection.set_tunnel(name, int(port or 443))
    try:
        connection.connect()
        with context.wrap_socket(connection.sock, server_hostname=name) as tls:
            return tls.getpeercert(binary_form=True) or b""
    finally:
        connection.close()


def token_url(challenge: str) -> tuple[str, str] | None:
    """Return host and path of the token request for a `WWW-Authenticate` challenge, None if there is none."""
    scheme, _, parameters = challenge.partition(" ")
    fields = dict(_PARAMETER.findall(parameters))
    if scheme.lower() != "bearer" or not fields.get("realm"):
        return None
    realm = urlsplit(fields["realm"])
    query = urlencode({name: fields[name] for name in ("service", "scope") if fields.get(name)})
    return realm.netloc, f"{realm.path or '/'}?{'&'.join(filter(None, (realm.query, query)))}"


def describe(error: Exception) -> str:
    """Return why a request failed, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {error.verify_message}"
    if isinstance(error, socket.gaierror):
        return "the name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) or type(error).__name__


def _request(connection: http.client.HTTPConnection, path: str, headers: dict[str, str] | None) -> Response:
    started = time.monotonic()
    try:
        connection.request("GET", path, headers=ACCEPT | (headers or {}))
        response = connection.getresponse()
        body = response.read(MAX_BODY)
        return Response(response.status, response.headers, body, time.monotonic() - started)
    finally:
        connection.close()
