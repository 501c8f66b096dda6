"""Outbound proxies, such as those of a company's network, through which the cache reaches registries and other hosts.

They are read from the environment variables `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, as curl and Go's net/http do.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Literal, cast
from urllib.parse import unquote, urlsplit

from ..oci.address import literal_address
from ..oci.errors import ConfigError

type ProxyScheme = Literal["http", "https"]

_SCHEMES = ("https", "http")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class OutboundProxy:
    """An HTTP proxy on the way to upstreams. With the scheme `https`, connections to the proxy itself use TLS."""

    scheme: ProxyScheme
    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)
    """Value of `Proxy-Authorization`; a secret."""

    @classmethod
    def parse(cls, text: str, source: str) -> "OutboundProxy":
        """Parse `http://user:password@host:port`, whose scheme, credentials and port may be absent.

        Raises `ConfigError` that names the `source` and not the value, which may contain a password.
        """
        try:
            url = urlsplit(text if "://" in text else f"http://{text}")
            host, port = url.hostname, url.port
            if not host or url.scheme not in _PORTS or url.path not in ("", "/") or url.query or url.fragment:
                raise ValueError
        except ValueError:
            raise ConfigError(f"{source}: expected http://[USER:PASSWORD@]HOST[:PORT], or https://") from None
        authorization = None
        if url.username is not None:
            authorization = basic_authorization(f"{unquote(url.username)}:{unquote(url.password or '')}")
        return cls(cast(ProxyScheme, url.scheme), host, port or _PORTS[url.scheme], authorization)

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def __str__(self) -> str:
        """Return the URL without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def basic_authorization(credentials: str) -> str:
    """Return the value of a header for `user:password` (RFC 7617)."""
    return "Basic " + base64.b64encode(credentials.encode()).decode()


class OutboundProxies:
    """Chooses the outbound proxy of each request and tunnel; without arguments there is none.

    `by_scheme` are the proxies for URLs with the schemes `https` (and for tunnels) and `http`.
    """

    def __init__(self, by_scheme: Mapping[str, OutboundProxy] | None = None, no_proxy: str = "") -> None:
        self._by_scheme = dict(by_scheme or {})
        self._exceptions = tuple(_exceptions(no_proxy))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "OutboundProxies":
        """Read the variables, of which a lower-case name has priority; raises `ConfigError` for an invalid one."""

        def value(name: str) -> str:
            return (environment.get(name.lower()) or environment.get(name) or "").strip()

        names = {scheme: f"{scheme.upper()}_PROXY" for scheme in _SCHEMES}
        found = {scheme: OutboundProxy.parse(value(name), name) for scheme, name in names.items() if value(name)}
        return cls(found, value("NO_PROXY"))

    @classmethod
    def all_through(cls, proxy: OutboundProxy) -> "OutboundProxies":
        """Return an instance that chooses this proxy for every request."""
        return cls(dict.fromkeys(_SCHEMES, proxy))

    def find(self, scheme: str, host: str, port: int | None) -> OutboundProxy | None:
        """Return the proxy for URLs with this scheme and host; None for a direct connection."""
        proxy = self._by_scheme.get(scheme)
        if proxy is None or any(each.matches(host, port) for each in self._exceptions):
            return None
        return proxy

    def at(self, address: tuple[str, int]) -> OutboundProxy | None:
        """Return the proxy that has this address."""
        return next((proxy for proxy in self if proxy.address == address), None)

    def __iter__(self) -> Iterator[OutboundProxy]:
        return iter(self._by_scheme.values())

    def __bool__(self) -> bool:
        return bool(self._by_scheme)

    def __str__(self) -> str:
        """Return the URLs without credentials, for the log."""
        return ", ".join(dict.fromkeys(map(str, self)))


@dataclass(frozen=True, slots=True)
class _Exception:
    """An entry of `NO_PROXY`."""

    host: str = ""
    """A domain with a dot in front, which stands for its subdomains; empty for any host."""
    includes_domain: bool = True
    network: IPv4Network | IPv6Network | None = None
    port: int | None = None

    def matches(self, host: str, port: int | None) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.network is not None:
            address = literal_address(host)
            return address is not None and address in self.network
        host = host.lower().rstrip(".")
        return not self.host or host.endswith(self.host) or (self.includes_domain and host == self.host[1:])


def _exceptions(text: str) -> Iterator[_Exception]:
    """Parse `NO_PROXY`: domains with their subdomains (`.example.com` and `*.example.com`: these alone), addresses and
    networks, each but networks with an optional port, and `*` for every host. Entries are separated by commas or
    spaces."""
    for entry in text.lower().replace(",", " ").split():
        try:
            yield _Exception(network=ip_network(entry.strip("[]"), strict=False))
            continue
        except ValueError:
            pass
        host, separator, number = entry.rpartition(":")
        port = int(number) if separator and number.isdecimal() else None
        host = host if port is not None else entry
        if host == "*":
            yield _Exception(port=port)
        elif address := literal_address(host):
            yield _Exception(network=ip_network(address), port=port)
        elif domain := host.removeprefix("*").strip("."):
            yield _Exception(f".{domain}", includes_domain=not host.startswith((".", "*")), port=port)
