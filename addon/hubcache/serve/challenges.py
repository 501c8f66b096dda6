"""What clients of the proxy door are told of a registry's token service.

A token service on another host than its registry (gitlab.com for registry.gitlab.com) is not intercepted: its outage
would stop stored public images at the proxy door. So clients are told a realm on the registry's own host, where
anonymous ones are answered by the cache and all others by the real service. Only where the real one is of the
registry's domain: elsewhere the client decides whether its password goes there, as without a cache.
"""

from dataclasses import replace

from ..oci.errors import BadUpstream
from ..oci.registry import HUB_REALM, Registry
from ..transfer.challenge import Challenge
from ..transfer.realms import may_receive_password, parse_realm

TOKEN_PATH = "/.hubcache/token"
"""On a registry's own host, outside of all that the distribution spec has."""

INSUFFICIENT, INVALID = "insufficient_scope", "invalid_token"
"""Errors of RFC 6750 section 3.1 that registries use."""


def client_challenge(registry: Registry, challenge: Challenge, error: str | None = None) -> Challenge:
    """The upstream's challenge as a client is told it; `error` is about the token that the client itself presented."""
    return replace(challenge, realm=_realm(registry, challenge.realm), error=error)


def is_on_registry_host(registry: Registry, realm: str) -> bool:
    """Whether clients find the realm on the very host and port at which they find the registry."""
    url = parse_realm(realm)
    return (url.scheme, url.host, url.port) == ("https", registry.hostname, registry.port)


def _realm(registry: Registry, realm: str) -> str:
    if registry.is_hub:
        return HUB_REALM
    try:
        if is_on_registry_host(registry, realm) or not may_receive_password(registry.upstream, realm):
            return realm
    except BadUpstream:  # no URL at all: the client's business
        return realm
    return f"https://{registry.host}{TOKEN_PATH}"


def client_error(error: str | None, presented: str | None, sent: str | None) -> str | None:
    """The error of a challenge as far as it is true of what the client presented; None for a client without a token.

    `sent` went upstream: the client's own credentials, or in place of a token of ours another one of ours, which is
    also refused for too little, but whose being invalid is no fault of the client's.
    """
    if presented is None:
        return None
    return error if presented == sent or error == INSUFFICIENT else None
