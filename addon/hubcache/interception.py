"""Which connections are ours: the hosts of the registries and of their token services, and nothing else."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qs

from mitmproxy import http
from mitmproxy.proxy.mode_specs import ReverseMode

from .oci.registry import HUB_REALM, Registry
from .serve.messages import Door

HUB_TOKEN_HOST = HUB_REALM.split("/")[2]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request belongs."""

    registry: Registry
    door: Door
    is_token_service: bool = False


class Interception:
    """The table of hosts, made from the configured registries."""

    def __init__(self, registries: Iterable[Registry]) -> None:
        self.registries = tuple(registries)
        self._places = {(registry.hostname, registry.port): Place(registry, Door.PROXY) for registry in self.registries}
        for registry in self.registries:
            if registry.is_hub:
                self._places[HUB_TOKEN_HOST, 443] = Place(registry, Door.PROXY, is_token_service=True)

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
        will. In the mirror door `?ns=` chooses the registry (containerd's convention); an unknown one is nobody's.
        """
        mode = flow.client_conn.proxy_mode
        if isinstance(mode, ReverseMode):
            return self.place_in_mirror(mode, flow.request.path.partition("?")[2])
        return self.place_of(flow.request.host, flow.request.port) if flow.request.scheme == "https" else None

    def place_of(self, host: str, port: int) -> Place | None:
        """Where a request inside of a tunnel to that address belongs."""
        return self._places.get((host.lower(), port))

    def place_in_mirror(self, mode: ReverseMode, query: str) -> Place | None:
        """Where a request at a mirror door belongs."""
        own = self.place_of(*mode.address)
        namespaces = parse_qs(query).get("ns")
        if not namespaces:
            return None if own is None else Place(own.registry, Door.MIRROR)
        for registry in self.registries:
            if registry.answers_to(namespaces[0]):
                return Place(registry, Door.MIRROR)
        return None
