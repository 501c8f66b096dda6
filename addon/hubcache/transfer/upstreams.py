"""The upstreams of all registries: those that are configured, and a bounded number of those that clients named."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from ..oci.errors import ManifestUnknown, Unavailable
from ..oci.registry import Registry
from ..oci.registry_pattern import RegistryPattern, registry_named
from .upstream import Upstream

MAX_NAMED = 256
"""Registries named by clients whose upstreams are kept. Clients choose the names, so their number has a bound."""


class Upstreams(Mapping[str, Upstream]):
    """Upstreams by the host of their registry. `open_upstream` makes one; `on_change` is called when a registry was
    added or removed."""

    def __init__(self, open_upstream: Callable[[Registry], Upstream], on_change: Callable[[], None]) -> None:
        self._open = open_upstream
        self._on_change = on_change
        self._upstreams: dict[str, Upstream] = {}
        """Upstreams of registries that are or were configured, and of registries that clients named, the latter in the
        order of their last use."""
        self._configured: frozenset[str] = frozenset()
        self._patterns: tuple[RegistryPattern, ...] = ()
        self._requests = Counter[str]()
        """Number of requests in progress, by the host of a registry that a client named."""

    def __getitem__(self, host: str) -> Upstream:
        return self._upstreams[host]

    def __iter__(self) -> Iterator[str]:
        return iter(self._upstreams)

    def __len__(self) -> int:
        return len(self._upstreams)

    def serves(self, host: str) -> bool:
        """Whether a registry is configured, or a pattern permits it."""
        named = registry_named(host)
        return host in self._configured or (named is not None and self._permits(named))

    @property
    def active(self) -> dict[str, Upstream]:
        """The upstreams that are configured, and those that clients named."""
        return {
            host: upstream
            for host, upstream in self._upstreams.items()
            if host in self._configured or upstream.registry.is_named_by_client
        }

    def configure(self, registries: Iterable[Registry], patterns: Iterable[RegistryPattern]) -> None:
        """Set the configured registries, and the patterns of those that clients may name.

        An upstream whose registry did not change keeps its state: a pause that the registry asked for does not end
        because another option changed. The upstream of a registry that is no longer configured is kept for the requests
        in progress.
        """
        registries = tuple(registries)
        self._configured = frozenset(registry.host for registry in registries)
        self._patterns = tuple(patterns)
        for registry in registries:
            known = self._upstreams.get(registry.host)
            if known is None or known.registry != registry:
                self._upstreams[registry.host] = self._open(registry)
        for host, upstream in tuple(self._upstreams.items()):
            named = upstream.registry
            if named.is_named_by_client and not self._permits(named) and host not in self._requests:
                del self._upstreams[host]

    @contextmanager
    def in_use(self, registry: Registry) -> Iterator[None]:
        """Provide an upstream for this registry while a request is answered.

        If there are `MAX_NAMED` upstreams, a new one replaces the least recently used one without a request; a fill or
        a prefetch that uses that one continues. Raises `Unavailable` when all have requests, and `ManifestUnknown` when
        no pattern permits the registry: a worker process may have older options.
        """
        host = registry.host
        if not registry.is_named_by_client or host in self._configured:
            yield
            return
        if not self._permits(registry):
            raise ManifestUnknown("this cache does not serve that registry")
        self._add(registry)
        self._requests[host] += 1
        try:
            yield
        finally:
            self._requests[host] -= 1
            if not self._requests[host]:
                del self._requests[host]

    def _permits(self, registry: Registry) -> bool:
        return any(pattern.matches(registry.hostname, registry.port) for pattern in self._patterns)

    def _add(self, registry: Registry) -> None:
        """Add the upstream of a registry that a client named, or mark it as the last used."""
        known = self._upstreams.get(registry.host)
        if known is not None and known.registry == registry:
            self._upstreams[registry.host] = self._upstreams.pop(registry.host)
            return
        named = [host for host, upstream in self._upstreams.items() if upstream.registry.is_named_by_client]
        if len(named) >= MAX_NAMED:
            oldest = next((host for host in named if host not in self._requests), None)
            if oldest is None:
                raise Unavailable(f"{MAX_NAMED} registries that are not configured are in use; try again later")
            del self._upstreams[oldest]
        self._upstreams[registry.host] = self._open(registry)
        self._on_change()
