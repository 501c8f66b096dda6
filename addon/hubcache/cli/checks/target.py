"""The cache that is checked, as far as it is known before or while the checks run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...oci.image_name import ImageName
from ..client import ControlClient

LOOPBACK = "127.0.0.1"
_ALL_ADDRESSES = ("", "*", "::", "0.0.0.0")  # noqa: S104 - compared with addresses, nothing listens


@dataclass(slots=True)
class Target:
    """A cache on this machine, or with `is_remote` one that is only known by its address.

    `image` is pulled to try the cache, and its registry is the one that the checks of the network use. A port is None
    when the cache has no such listener.
    """

    image: ImageName
    host: str = LOOPBACK
    mirror_port: int | None = None
    proxy_port: int | None = None
    is_remote: bool = False
    client: ControlClient | None = None
    report: dict[str, Any] | None = None
    """The cache's own report; None if it does not run or is remote."""
    ca_file: Path | None = None
    ca_pem: bytes | None = field(default=None, repr=False)
    """The CA certificate, once a check has found it."""

    closed: set[str] = field(default_factory=set)
    """The listeners (`mirror`, `proxy`) that do not answer."""

    def is_closed(self, kind: str) -> bool:
        """Whether a listener cannot be used: the cache has none, or it does not answer."""
        return kind in self.closed or (self.mirror_port if kind == "mirror" else self.proxy_port) is None

    @property
    def registry(self) -> str:
        """Host of the registry from which the image is pulled."""
        return self.image.host

    def mirror_name(self) -> str:
        """Return `host:port` of the mirror, for messages."""
        return f"{self.host}:{self.mirror_port}"

    def proxy_name(self) -> str:
        """Return `host:port` of the proxy, for messages."""
        return f"{self.host}:{self.proxy_port}"


def reachable_host(host: str) -> str:
    """Return the address at which this machine reaches a listener of its own."""
    return LOOPBACK if host in _ALL_ADDRESSES else host
