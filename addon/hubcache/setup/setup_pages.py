"""Serves `/setup`, `/setup/attach`, `/setup/answered` and `/ca.crt`, on the mirror and on the status listener.

`http://hub.cache/` has these pages too, and the status page: clients of the proxy reach it by that name.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cachetools import LRUCache

from ..serve.messages import Answer, Listener, Request, Result
from .pages import Addresses, attach_script, setup_page

MAX_CLIENTS = 4096
"""Clients whose requests are counted."""


class Page(NamedTuple):
    """A page: its media type, its bytes, and further headers."""

    media_type: str
    body: bytes
    further: Mapping[str, str] = MappingProxyType({})

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer. A browser must not guess another type, nor keep a copy."""
        own = {"Content-Type": self.media_type, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        return own | dict(self.further)


class SetupPages:
    """The set-up pages of one cache.

    `ca_certificate` is the file with the certificate of the proxy's CA, without its key.
    """

    def __init__(self, ca_certificate: Path, mirror_port: int, proxy_port: int) -> None:
        self._ca_certificate = ca_certificate
        self._ports = mirror_port, proxy_port
        self._answered: LRUCache[str, int] = LRUCache(MAX_CLIENTS)
        self.public_status: Callable[[str], Page | None] = lambda _: None
        """Returns the page about the status at a path, as clients of the proxy may see it, or None."""

    def count(self, client: str, requests: int = 1) -> None:
        """Count requests to a registry by a client's address: `attach` uses it to prove that a pull came here."""
        self._answered[client] = self._answered.get(client, 0) + requests

    def answer(self, request: Request) -> Answer | None:
        """Return the answer to a request at the mirror for one of these pages; None for every other request."""
        if request.listener is not Listener.MIRROR or request.method not in ("GET", "HEAD"):
            return None
        page = self.page(request.path, request.headers.get("host", ""), request.client)
        if page is None and request.to_cache:
            page = self.public_status(request.path)
        if page is None:
            return None
        body = page.body if request.method == "GET" else b""
        return Answer(200, page.headers, Result.LOCAL, body, length=len(page.body), kind="setup")

    def page(self, path: str, authority: str, client: str) -> Page | None:
        """Return the page at a path, for a client that named the cache `authority`; None if there is no such page."""
        addresses = Addresses.of(authority, *self._ports)
        match path:
            case "/setup" | "/setup/":
                return Page("text/html; charset=utf-8", setup_page(addresses))
            case "/setup/attach":
                return Page("text/x-shellscript; charset=utf-8", attach_script(addresses))
            case "/setup/answered":
                return Page("text/plain; charset=utf-8", f"{self._answered.get(client, 0)}\n".encode())
            case "/ca.crt" if self._ca_certificate.is_file():  # the user may have removed it since the start
                return Page("application/x-pem-file", self._ca_certificate.read_bytes())
        return None
