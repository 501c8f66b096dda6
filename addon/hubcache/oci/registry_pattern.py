"""Patterns of registries: hosts that a client may name without their being configured one by one."""

import re
from dataclasses import dataclass
from typing import Self

from .errors import ConfigError
from .registrable_domain import registrable_domain
from .registry import HOSTNAME, Registry

_EXPECTED = "expected *, *.DOMAIN, *.DOMAIN:PORT or *.DOMAIN:*"
_NAMESPACE = re.compile(rf"({HOSTNAME.pattern})(?::([1-9][0-9]{{0,4}}))?")
_MAX_NAMESPACE = 253 + len(":65535")
"""Characters of a DNS name (RFC 1035 section 2.3.4) and a port."""

_ADDRESS = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""IPv4 addresses in all spellings that resolvers accept (`127.1`, `0x7f.1`, `2130706433`): the last part is a number.
Those of IPv6 contain colons, which no host name does."""
_INNER = re.compile(r"[^.]*|.*\.(?:svc|local|localhost|internal|lan|home|corp|home\.arpa)")
"""Names that public DNS does not have: single labels, and names under domains that are reserved or used in private
networks (RFC 6761, RFC 6762, RFC 8375, ICANN's resolutions on `home`, `corp` and `internal`)."""


@dataclass(frozen=True, slots=True)
class RegistryPattern:
    """The registries whose hosts are below `domain`, at `port`; None for any domain or port.

    No pattern matches an IP address. A pattern without a domain matches no inner name: a registry there is configured
    by its own name, or by the domain that it is in.
    """

    domain: str | None
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `*`, which has any port, or `*.DOMAIN` with `:PORT`, `:*` or port 443; raises `ConfigError`."""
        text = text.strip().lower()
        if text == "*":
            return cls(None, None)
        host, separator, port = text.partition(":")
        domain = host.removeprefix("*.")
        if domain == host or HOSTNAME.fullmatch(domain) is None or _ADDRESS.fullmatch(domain):
            raise ConfigError(f"{text!r} is not a pattern of registries; {_EXPECTED}")
        if registrable_domain(f"x.{domain}") == f"x.{domain}":  # the CA would sign for everything below it
            raise ConfigError(f"{text!r}: {domain} is a public suffix; name a domain below it, or each registry")
        if not separator:
            return cls(domain, 443)
        if port != "*" and (not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > 65535):
            raise ConfigError(f"{text!r}: {port!r} is not a port; {_EXPECTED}")
        return cls(domain, None if port == "*" else int(port))

    def matches(self, hostname: str, port: int) -> bool:
        """Whether a registry at this address is permitted; `hostname` is in lower case."""
        if _ADDRESS.fullmatch(hostname) or ":" in hostname or self.port not in (None, port):
            return False
        if self.domain is None:
            return _INNER.fullmatch(hostname) is None
        return hostname.endswith(f".{self.domain}")


def is_pattern(text: str) -> bool:
    """Whether a value of the option is meant as a pattern."""
    return "*" in text


def registry_named(namespace: str) -> Registry | None:
    """Return the registry that a client names, as HOST or HOST:PORT; None where no registry can have that name.

    The text comes from a client: it never contains an upstream.
    """
    found = _NAMESPACE.fullmatch(namespace.lower()) if len(namespace) <= _MAX_NAMESPACE else None
    if found is None or int(found[2] or 443) > 65535:
        return None
    registry = Registry.parse(found[0])
    return Registry(registry.host, registry.upstream, is_named_by_client=True)
