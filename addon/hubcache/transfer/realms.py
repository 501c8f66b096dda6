"""Parses token realms, and decides which of them may receive a password."""

import ipaddress

from yarl import URL

from ..oci.errors import BadUpstream
from ..oci.registrable_domain import registrable_domain
from .session import parse_url


def parse_realm(realm: str) -> URL:
    """Return a realm as a URL; raises `BadUpstream` when it is not an http URL."""
    try:
        url = parse_url(realm)
    except ValueError as error:
        raise BadUpstream("upstream named a token realm that is not a URL") from error
    if url.scheme not in ("http", "https") or url.host is None:
        raise BadUpstream("upstream named a token realm that is not an http URL")
    return url


def may_receive_password(upstream: str, realm: str) -> bool:
    """Whether a realm has the upstream's registrable domain (or its IP address), and is not less protected.

    A registry that names a realm elsewhere must not have passwords sent there: RFC 6750 leaves this to the client.
    Raises `BadUpstream` for a realm that is not a URL.
    """
    upstream_url, realm_url = URL(upstream), parse_realm(realm)
    if upstream_url.scheme == "https" and realm_url.scheme != "https":
        return False
    if _is_address(upstream_url.host) or _is_address(realm_url.host):
        return upstream_url.host == realm_url.host
    domains = {registrable_domain(url.host or "") for url in (upstream_url, realm_url)}
    return len(domains) == 1


def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True
