"""Decides which connections are intercepted: those to registries and their token services, and no others."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs

from mitmproxy import http
from mitmproxy.proxy.mode_specs import ReverseMode

from ..oci.reference import is_api_path
from ..oci.registry import HUB_INDEX_HOST, HUB_REALM, Registry
from ..oci.registry_pattern import RegistryPattern, registry_named
from ..serve.challenges import TOKEN_PATH
from ..serve.messages import Listener, Request

HUB_TOKEN_HOST = HUB_REALM.split("/")[2]
SETUP_HOST = "hub.cache"
"""The name under which clients of the proxy find the status and the set-up pages, as `mitm.it` is mitmproxy's. It is in
no DNS."""


@dataclass(frozen=True, slots=True)
class Place:
    """The registry that a request is for, and how it was reached."""

    registry: Registry
    listener: Listener
    is_token_service: bool = False
    is_cache: bool = False
    """Whether the request is for the cache itself, at `SETUP_HOST`."""

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
            to_cache=self.is_cache,
        )


class Interception:
    """The hosts of the configured registries, and the patterns of registries that clients may name.

    At the proxy, a pattern applies only if it has a domain, for which the CA can sign; `*` applies to mirrors only.
    """

    def __init__(self, registries: Iterable[Registry], patterns: Iterable[RegistryPattern] = ()) -> None:
        self.registries = tuple(registries)
        self._patterns = tuple(patterns)
        self._intercepted = tuple(pattern for pattern in self._patterns if pattern.domain is not None)
        self._places = {
            (registry.hostname, registry.port): Place(registry, Listener.PROXY) for registry in self.registries
        }
        for registry in self.registries:
            if registry.is_hub:
                self._places[HUB_INDEX_HOST, 443] = Place(registry, Listener.PROXY)
                self._places[HUB_TOKEN_HOST, 443] = Place(registry, Listener.PROXY, is_token_service=True)

    @property
    def hosts(self) -> list[str]:
        """Host names, and domains of host names, for which leaf certificates are made."""
        return [host for host, _ in self._places] + [str(pattern.domain) for pattern in self._intercepted]

    @property
    def allow_hosts(self) -> list[str]:
        """Patterns for mitmproxy's option of that name: the contents of any other tunnel are not decoded."""
        hosts = [rf"^\[?{re.escape(host)}\]?:{port}$" for host, port in self._places]
        return hosts + [
            rf"^[0-9a-z_.-]+\.{re.escape(str(pattern.domain))}:{pattern.port or '[0-9]+'}$"
            for pattern in self._intercepted
        ]

    def has(self, host: str, port: int) -> bool:
        """Whether connections to that address are intercepted."""
        return (host.lower(), port) in self._places or self._named((host, port), self._intercepted) is not None

    def serves(self, mode: ReverseMode) -> bool:
        """Whether a mirror's target is one of the registries."""
        return (mode.address[0].lower(), mode.address[1]) in self._places

    def place(self, flow: http.HTTPFlow) -> Place | None:
        """Return the place of a request; None for a request that is only passed through.

        At the proxy the host is that of the CONNECT, never that of the `Host` header, which the client chooses.
        """
        mode, (path, _, query) = flow.client_conn.proxy_mode, flow.request.path.partition("?")
        if isinstance(mode, ReverseMode):
            return self.place_in_mirror(mode, query, flow.request.headers.get("oci-namespace"))
        if flow.request.scheme == "http" and flow.request.host == SETUP_HOST:
            return Place(self.registries[0], Listener.MIRROR, is_cache=True)
        return self.place_of((flow.request.host, flow.request.port), path) if flow.request.scheme == "https" else None

    def place_of(self, address: tuple[str, int], path: str) -> Place | None:
        """Return the place of a request inside of a tunnel to that address.

        `index.docker.io` has more than the registry API (`docker search` requests `/v1/search`), as may a host that
        only a pattern names: it need not be a registry.
        """
        host, port = address[0].lower(), address[1]
        place = self._places.get((host, port))
        if place is None and (is_api_path(path) or path == TOKEN_PATH):
            registry = self._named(address, self._intercepted)
            return None if registry is None else Place(registry, Listener.PROXY)
        return None if host == HUB_INDEX_HOST and not is_api_path(path) else place

    def place_in_mirror(self, mode: ReverseMode, query: str, header: str | None) -> Place | None:
        """Return the place of a request to a mirror; `header` is its `OCI-Namespace`.

        `?ns=` (containerd) or the header `OCI-Namespace` (stargz) chooses the registry; None where that is unknown.
        The distribution spec ("Registry Proxying") has had both, and gives no precedence. Where they differ, `?ns=`
        counts: it is part of the URL, by which caches and logs on the way identify a request.
        """
        named = (parse_qs(query).get("ns", [])[:1] if query else None) or [(header or "").strip()]
        if not named[0]:
            own = self._places.get((mode.address[0].lower(), mode.address[1]))
            return None if own is None else Place(own.registry, Listener.MIRROR)
        for registry in self.registries:
            if registry.matches_namespace(named[0]):
                return Place(registry, Listener.MIRROR)
        by_client = registry_named(named[0])
        found = by_client and self._named((by_client.hostname, by_client.port), self._patterns)
        return None if found is None else Place(found, Listener.MIRROR)

    def _named(self, address: tuple[str, int], patterns: Iterable[RegistryPattern]) -> Registry | None:
        """Return the registry at an address that a client names, if a pattern permits it.

        Return the configured registry where the address is another name of it.
        """
        host, port = address[0].lower(), address[1]
        registry = registry_named(f"{host}:{port}")
        if registry is None or not any(pattern.matches(host, port) for pattern in patterns):
            return None
        return next((each for each in self.registries if each.host == registry.host), registry)
