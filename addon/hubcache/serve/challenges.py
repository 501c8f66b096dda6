"""The challenge (`WWW-Authenticate`) that clients of the proxy receive in place of the upstream's.

A token service on another host than its registry (gitlab.com for registry.gitlab.com) is not intercepted: while it is
down, clients of the proxy could not even pull stored public images. So clients are sent to a realm on the registry's
own host, where the cache answers anonymous clients and the real service answers all others. This is done only where the
real service is in the registry's domain: elsewhere the client decides whether its password goes there, as without a
cache.
"""

from dataclasses import replace

from ..oci.errors import BadUpstream
from ..oci.registry import HUB_REALM, Registry
from ..transfer.challenge import Challenge
from ..transfer.realms import may_receive_password, parse_realm

TOKEN_PATH = "/.hubcache/token"
"""On a registry's own host, outside of the paths of the distribution spec."""

INSUFFICIENT, INVALID = "insufficient_scope", "invalid_token"
"""Errors of RFC 6750 section 3.1 that registries use."""


def client_challenge(registry: Registry, challenge: Challenge, error: str | None = None) -> Challenge:
    """Return the upstream's challenge as a client receives it; `error` is about the token that the client presented."""
    return replace(challenge, realm=_client_realm(registry, challenge.realm), error=error)


def is_on_registry_host(registry: Registry, realm: str) -> bool:
    """Whether a realm has the host and port at which clients reach the registry."""
    url = parse_realm(realm)
    return (url.scheme, url.host, url.port) == ("https", registry.hostname, registry.port)


def _client_realm(registry: Registry, realm: str) -> str:
    if registry.is_hub:
        return HUB_REALM
    try:
        if not may_receive_password(registry.upstream, realm):
            return realm
        if is_on_registry_host(registry, realm) and not registry.is_named_by_client:  # else that path is not served
            return realm
    except BadUpstream:  # not a URL: leave it to the client
        return realm
    return f"https://{registry.host}{TOKEN_PATH}"


def client_error(error: str | None, presented: str | None, sent: str | None) -> str | None:
    """Return the error of a challenge where it applies to what the client `presented`; None without a token.

    `sent` are the credentials that went upstream: the client's own, or the cache's in place of a token that the cache
    issued. Of the errors about the cache's credentials, the client receives only "insufficient scope".
    """
    if presented is None:
        return None
    return error if presented == sent or error == INSUFFICIENT else None
