"""Decides which connections are intercepted: those to registries and their token services, and no others."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from mitmproxy import http
from mitmproxy.proxy.mode_specs import ReverseMode

from ..oci.reference import is_api_path
from ..oci.registry import HUB_INDEX_HOST, HUB_REALM, Registry
from ..serve.messages import Listener, Request

HUB_TOKEN_HOST = HUB_REALM.split("/")[2]
SETUP_HOST = "hub.cache"
"""The name under which clients of the proxy find the set-up pages, as `mitm.it` is mitmproxy's. It is in no DNS."""


@dataclass(frozen=True, slots=True)
class Place:
    """The registry that a request is for, and how it was reached."""

    registry: Registry
    listener: Listener
    is_token_service: bool = False

    def request(self, *, method: str, path: str, query: str, headers: Mapping[str, str], client: str) -> Request:
        """Return the request that a client at the address `client` sent here; header names may have any case."""
        return Request(
            method=method,
            path=path,
            query=query,
            registry=self.registry,
            listener=self.listener,
            headers={name.lower(): value for name, value in headers.items()},
            client=client,
            to_token_service=self.is_token_service,
        )


class Interception:
    """The table of hosts, made from the configured registries."""

    def __init__(self, registries: Iterable[Registry]) -> None:
        self.registries = tuple(registries)
        self._places = {
            (registry.hostname, registry.port): Place(registry, Listener.PROXY) for registry in self.registries
        }
        for registry in self.registries:
            if registry.is_hub:
                self._places[HUB_INDEX_HOST, 443] = Place(registry, Listener.PROXY)
                self._places[HUB_TOKEN_HOST, 443] = Place(registry, Listener.PROXY, is_token_service=True)

    @property
    def hosts(self) -> list[str]:
        """Host names for which leaf certificates are made."""
        return [host for host, _ in self._places]

    @property
    def allow_hosts(self) -> list[str]:
        """Patterns for mitmproxy's option of that name: the contents of any other tunnel are not decoded."""
        return [rf"^\[?{re.escape(host)}\]?:{port}$" for host, port in self._places]

    def has(self, host: str, port: int) -> bool:
        """Whether connections to that address are intercepted."""
        return (host.lower(), port) in self._places

    def serves(self, mode: ReverseMode) -> bool:
        """Whether a mirror's target is one of the registries."""
        return self.has(*mode.address)

    def place(self, flow: http.HTTPFlow) -> Place | None:
        """Return the place of a request; None for one that is only passed through.

        At the proxy the host is that of the CONNECT, never that of the `Host` header, which the client chooses.
        """
        mode, (path, _, query) = flow.client_conn.proxy_mode, flow.request.path.partition("?")
        if isinstance(mode, ReverseMode):
            return self.place_in_mirror(mode, query, flow.request.headers.get("oci-namespace"))
        if flow.request.scheme == "http" and flow.request.host == SETUP_HOST:
            return Place(self.registries[0], Listener.MIRROR)
        return self.place_of((flow.request.host, flow.request.port), path) if flow.request.scheme == "https" else None

    def place_of(self, address: tuple[str, int], path: str) -> Place | None:
        """Return the place of a request inside of a tunnel to that address.

        `index.docker.io` has more than the registry API (`docker search` requests `/v1/search`), and is alone in that.
        """
        host, port = address[0].lower(), address[1]
        return None if host == HUB_INDEX_HOST and not is_api_path(path) else self._places.get((host, port))

    def place_in_mirror(self, mode: ReverseMode, query: str, header: str | None) -> Place | None:
        """Return the place of a request to a mirror; `header` is its `OCI-Namespace`.

        `?ns=` (containerd) or the header `OCI-Namespace` (stargz) chooses the registry; None where that is unknown.
        The distribution spec ("Registry Proxying") has had both, and gives no precedence. Where they differ, `?ns=`
        counts: it is part of the URL, by which caches and logs on the way identify a request.
        """
        named = parse_qs(query).get("ns", [])[:1] or [(header or "").strip()]
        if not named[0]:
            own = self._places.get((mode.address[0].lower(), mode.address[1]))
            return None if own is None else Place(own.registry, Listener.MIRROR)
        for registry in self.registries:
            if registry.matches_namespace(named[0]):
                return Place(registry, Listener.MIRROR)
        return None
