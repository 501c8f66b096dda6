"""Which connections are ours: the hosts of the registries and of their token services, and nothing else."""

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request belongs."""

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
        """Patterns for mitmproxy's option of that name: any other CONNECT is tunnelled raw."""
        return [rf"^\[?{re.escape(host)}\]?:{port}$" for host, port in self._places]

    def has(self, host: str, port: int) -> bool:
        """Whether connections to that address are ours."""
        return (host.lower(), port) in self._places

    def serves(self, mode: ReverseMode) -> bool:
        """Whether a mirror door's target is one of the registries."""
        return self.has(*mode.address)

    def place(self, flow: http.HTTPFlow) -> Place | None:
        """Where a request belongs; None for what only passes through.

        In the proxy door the host is the one of the CONNECT, never the `Host` header, which the client may set at
        will.
        """
        mode, (path, _, query) = flow.client_conn.proxy_mode, flow.request.path.partition("?")
        if isinstance(mode, ReverseMode):
            return self.place_in_mirror(mode, query, flow.request.headers.get("oci-namespace"))
        return self.place_of((flow.request.host, flow.request.port), path) if flow.request.scheme == "https" else None

    def place_of(self, address: tuple[str, int], path: str) -> Place | None:
        """Where a request inside of a tunnel to that address belongs.

        `index.docker.io` has more than the registry API (`docker search` asks for `/v1/search`), and only there.
        """
        host, port = address[0].lower(), address[1]
        return None if host == HUB_INDEX_HOST and not is_api_path(path) else self._places.get((host, port))

    def place_in_mirror(self, mode: ReverseMode, query: str, header: str | None) -> Place | None:
        """Where a request at a mirror door belongs; `header` is its `OCI-Namespace`.

        `?ns=` (containerd) or the header `OCI-Namespace` (stargz) chooses the registry, and an unknown one is nobody's.
        The distribution spec ("Registry Proxying") has had both, and knows no order. Where they differ `?ns=` counts:
        it is a part of the address, which caches and logs on the way go by.
        """
        named = parse_qs(query).get("ns", [])[:1] or [(header or "").strip()]
        if not named[0]:
            own = self._places.get((mode.address[0].lower(), mode.address[1]))
            return None if own is None else Place(own.registry, Listener.MIRROR)
        for registry in self.registries:
            if registry.matches_namespace(named[0]):
                return Place(registry, Listener.MIRROR)
        return None
