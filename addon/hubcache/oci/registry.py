"""A registry that this proxy caches: the host name that clients use, and the URL of its upstream."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from .errors import ConfigError

_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
"""A host name in lower case."""

HUB_HOST = "registry-1.docker.io"
HUB_REALM = "https://auth.docker.io/token"
HUB_SERVICE = "registry.docker.io"
HUB_INDEX_HOST = "index.docker.io"
"""Docker Hub's name in go-containerregistry (crane, ko, kaniko, cosign); it serves the same API as `HUB_HOST`."""
HUB_NAMESPACES = frozenset({"docker.io", HUB_INDEX_HOST, HUB_HOST})
"""Values of `?ns=` that mean Docker Hub (containerd and newer dockerd send `docker.io`)."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry: `host` as clients write it (lower case, with a port unless 443), and `upstream`, an origin URL."""

    host: str
    upstream: str
    is_named_by_client: bool = False
    """Whether it is not configured: a client named it, and a pattern permits it. Its own host may then not have a local
    address."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `HOST` or `HOST=UPSTREAM_URL`; raises `ConfigError`. All names of Docker Hub become `HUB_HOST`."""
        host, separator, upstream = text.strip().partition("=")
        host = host.strip().lower()
        if host.removesuffix(":443") in HUB_NAMESPACES:
            host = HUB_HOST
        if separator and not upstream.strip():
            raise ConfigError(f"{text!r}: nothing after '='; expected HOST or HOST=UPSTREAM_URL")
        origin = _origin(f"https://{host}", text)
        if origin != f"https://{host}".removesuffix(":443"):
            raise ConfigError(f"{text!r}: {host!r} is not a host name; expected HOST or HOST=UPSTREAM_URL")
        return cls(host.removesuffix(":443"), _origin(upstream.strip(), text) if separator else origin)

    @property
    def hostname(self) -> str:
        """The host without port, and without the brackets of an IPv6 address."""
        return urlsplit(f"//{self.host}").hostname or self.host

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return urlsplit(f"//{self.host}").port or 443

    @property
    def is_hub(self) -> bool:
        """Whether this is Docker Hub, with any upstream."""
        return self.host == HUB_HOST

    @property
    def realm(self) -> str | None:
        """The token realm for clients, if it is known without a request: only Docker Hub's is."""
        return HUB_REALM if self.is_hub else None

    @property
    def namespace(self) -> str:
        """The name of this registry in image names and in `?ns=`."""
        return "docker.io" if self.is_hub else self.host

    def matches_namespace(self, namespace: str) -> bool:
        """Whether a mirror request with `?ns=namespace` is for this registry."""
        namespace = namespace.lower()
        return namespace == self.host or (self.is_hub and namespace in HUB_NAMESPACES)


def _origin(url: str, text: str) -> str:
    """Return the origin of a URL without a default port; raises `ConfigError`, which quotes `text`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}; expected HOST or HOST=UPSTREAM_URL") from error
    if not url.isascii():
        raise ConfigError(f"{text!r}: write an international host name in its xn-- form")
    if parts.hostname and ":" not in parts.hostname and HOSTNAME.fullmatch(parts.hostname) is None:
        raise ConfigError(f"{text!r}: {parts.hostname!r} is not a host name; set the option once for each registry")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ConfigError(f"{text!r}: expected HOST or HOST=UPSTREAM_URL with an http or https URL")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"{text!r}: the upstream URL may have no path or query")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{host}" if port in (None, default) else f"{parts.scheme}://{host}:{port}"
