"""Finds the upstream of an image that a command names."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..oci.errors import ManifestUnknown
from ..oci.image_name import ImageName
from ..oci.registry_pattern import registry_named
from ..transfer.upstream import Upstream
from ..transfer.upstreams import Upstreams
from .errors import Refused


class NotServed(Refused):
    """The cache does not serve the registry of an image."""


@contextmanager
def upstream_of(upstreams: Upstreams, image: ImageName) -> Iterator[Upstream]:
    """Provide the upstream of an image's registry; raises `NotServed` where no option names or permits it."""
    known = upstreams.active.get(image.host)
    registry = registry_named(image.host) if known is None else known.registry
    with ExitStack() as stack:
        try:
            if registry is None:
                raise ManifestUnknown("no registry can have that name")
            stack.enter_context(upstreams.in_use(registry))
            upstream = upstreams[registry.host]
        except (ManifestUnknown, KeyError) as error:
            raise NotServed(f"this cache does not serve {image.host}; add it to hubcache_registries") from error
        yield upstream
