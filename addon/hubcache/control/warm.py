"""Fetches images into the store because the operator asks for it, and reports the progress.

The images of one command are held until it ends: what it reports as stored is stored then, and an image for which there
is no space fails before its layers are downloaded, instead of evicting the images before it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from ..decide.records import TagRecord
from ..oci.digest import Digest
from ..oci.errors import (
    BadUpstream,
    Denied,
    HubcacheError,
    ManifestUnknown,
    NotStored,
    StorageError,
    TooManyRequests,
    Unauthorized,
)
from ..oci.image_name import ImageName
from ..serve.repository_view import RepositoryView
from ..store.usage import size_on_disk
from ..transfer.request_count import RequestCount, counting
from .errors import InvalidCommand
from .held_content import HeldContent
from .http import parse_image
from .image_tree import NEGOTIATION, ImageTree, fetch_manifests
from .parts import Parts
from .platforms import parse_platforms
from .registries import NotServed, upstream_of
from .warm_progress import ImageProgress, Layer, State

MAX_IMAGES = 10_000
"""Images of one command."""

_PARALLEL_IMAGES = 4
_PARALLEL_LAYERS = 8
"""Layers of one command that are downloaded at the same time, in slots of prefetches: clients come first."""

_REPORT_SECONDS = 0.25
_HEARTBEAT_SECONDS = 5.0
"""Without a change an image is reported again after this time, so that the end of the client is noticed."""


type Pin = Callable[[ImageName], Awaitable[None]]


class Warm:
    """Fetches images. `pin` pins an image whose content is stored."""

    def __init__(self, parts: Parts, pin: Pin) -> None:
        self._parts = parts
        self._pin = pin
        self._promised: dict[Digest, int] = {}
        """Bytes on disk of layers that running commands will store and have not begun to."""

    def prepare(
        self, images: Sequence[str], platforms: Collection[str] | None, *, keep: bool
    ) -> AsyncGenerator[dict[str, Any]]:
        """Return an iterator that fetches images, for these platforms (None: all), and yields events; `keep`: pin them.

        Raises `InvalidCommand` for malformed names and platforms. When the iterator is closed, the work is cancelled.
        """
        if len(images) > MAX_IMAGES:
            raise InvalidCommand(f"{len(images)} images are more than one command may fetch, which is {MAX_IMAGES}")
        wanted = parse_platforms(platforms)
        names = {text: parse_image(text) for text in images}
        return self._run(names, wanted, keep)

    async def _run(
        self, names: Mapping[str, ImageName], platforms: frozenset[str] | None, keep: bool
    ) -> AsyncGenerator[dict[str, Any]]:
        run = _Run(self._parts, self._promised, platforms, self._pin if keep else None)
        progress = [ImageProgress(text, self._parts.fills) for text in names]
        work = asyncio.create_task(run.fetch_all(progress, list(names.values())))
        pending = progress
        try:
            quiet = 0.0
            while True:
                is_last = work.done()
                for image in pending:
                    for event in image.changes(again=quiet >= _HEARTBEAT_SECONDS):
                        quiet = 0.0
                        yield event
                if is_last:
                    break
                await asyncio.wait({work}, timeout=_REPORT_SECONDS)
                quiet += _REPORT_SECONDS
                pending = [image for image in pending if not image.is_reported]
            work.result()
            yield run.summary(progress)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            run.held.release()


class _Run:
    """One command."""

    def __init__(
        self, parts: Parts, promised: dict[Digest, int], platforms: frozenset[str] | None, pin: Pin | None
    ) -> None:
        self.held = HeldContent(parts.store)
        self._parts = parts
        self._promised = promised
        self._platforms = platforms
        self._pin = pin
        self._image_slots = asyncio.Semaphore(_PARALLEL_IMAGES)
        self._layer_slots = asyncio.Semaphore(_PARALLEL_LAYERS)
        self._requests = RequestCount()
        self._remaining_before: dict[str, int | None] = {}

    async def fetch_all(self, progress: Sequence[ImageProgress], names: Sequence[ImageName]) -> None:
        """Fetch all images; errors are in their progress."""
        with counting() as self._requests:
            async with asyncio.TaskGroup() as group:
                for image, name in zip(progress, names, strict=True):
                    group.create_task(self._fetch(image, name))

    def summary(self, progress: Sequence[ImageProgress]) -> dict[str, Any]:
        """Return the last event."""
        states = [image.state for image in progress]
        return {
            "done": True,
            "stored": states.count(State.STORED),
            "failed": states.count(State.FAILED),
            "skipped": states.count(State.SKIPPED),
            "received": sum(image.received for image in progress),
            "upstream_requests": self._requests.value,
            "ratelimit": [
                {"registry": host, "before": before, "after": self._parts.remaining(host)}
                for host, before in sorted(self._remaining_before.items())
            ],
        }

    async def _fetch(self, image: ImageProgress, name: ImageName) -> None:
        async with self._image_slots:
            image.state = State.RUNNING
            try:
                with upstream_of(self._parts.upstreams, name) as upstream:
                    await self._fetch_image(image, name, RepositoryView(upstream, name.repository))
                if self._pin is not None:
                    await self._pin(name)
            except NotServed as error:
                image.end(State.SKIPPED, str(error))
            except HubcacheError as error:
                image.end(State.FAILED, _sentence(error, name))
            else:
                image.end(State.STORED)

    async def _fetch_image(self, image: ImageProgress, name: ImageName, view: RepositoryView) -> None:
        """Fetch all content of an image, and then let its tag refer to it: clients never wait for a new layer."""
        self._remaining_before.setdefault(view.host, self._parts.remaining(view.host))
        if isinstance(name.reference, Digest):
            await self._fetch_content(image, view, name.reference)
            return
        tag, writer, requested_at = name.reference, self._parts.writer, time.time()
        change_number = writer.change_number(view.host, view.repository, tag)
        described = await self._head(view, tag)
        if described is None:
            found = await self._parts.validation.validate(view, tag, NEGOTIATION, head=False)
            await self._fetch_content(image, view, found.digest)
            return
        await self._fetch_content(image, view, described.digest)
        known = self._parts.store.tags.get(view.host, view.repository, tag).get(NEGOTIATION)
        if known is None or known.validated_at < requested_at:
            await writer.put_tag(view.host, view.repository, tag, NEGOTIATION, described, change_number)

    async def _head(self, view: RepositoryView, tag: str) -> TagRecord | None:
        """Return what a tag refers to at the registry, and leave the tag of the cache as it is.

        By a HEAD, which does not count against the rate limit and shows its state. None where that is refused or
        incomplete: then a GET is needed.
        """
        requested_at = time.time()
        try:
            described = await view.upstream.head_manifest(view.repository, tag, NEGOTIATION)
        except (Unauthorized, Denied, ManifestUnknown, BadUpstream):
            return None
        if self._remaining_before[view.host] is None:
            self._remaining_before[view.host] = self._parts.remaining(view.host)
        if described.digest is None or described.size is None:
            return None
        return TagRecord(described.digest, described.media_type, described.size, requested_at)

    async def _fetch_content(self, image: ImageProgress, view: RepositoryView, root: Digest) -> None:
        image.digest = root
        tree = await fetch_manifests(self._parts, view, root, self._platforms, self.held)
        image.layers = [Layer(digest, size) for digest, size in tree.blobs.items()]
        self.held.add(*tree.blobs)
        self._check_capacity(tree)
        try:
            await self._fetch_layers(view, image.layers)
        finally:
            for layer in image.layers:
                self._promised.pop(layer.digest, None)
        self._check_stored(tree)

    # -- space --------------------------------------------------------------------------------------------------------

    def _check_capacity(self, tree: ImageTree) -> None:
        """Raise `NotStored` if an image does not fit beside what is pinned, in use or held; else promise its space."""
        store = self._parts.store
        missing = {digest: size for digest, size in tree.blobs.items() if not store.has(digest)}
        largest = max(missing.values(), default=0)
        if store.capacity.max_blob and largest > store.capacity.max_blob:
            raise NotStored(f"a layer has {largest} bytes, which is more than hubcache_max_blob allows")
        new = {digest: size_on_disk(size) for digest, size in missing.items() if digest not in self._promised}
        available = store.capacity.available(store.index.opened().bytes) - sum(self._promised.values())
        if sum(new.values()) > available:
            raise NotStored(
                f"the image needs {sum(new.values())} bytes more, and {max(0, available)} bytes are neither pinned, in "
                "use, nor taken by other images of the command; see hubcache_size"
            )
        self._promised.update(new)

    def _check_stored(self, tree: ImageTree) -> None:
        """Raise `StorageError` when content was delivered, but is not stored."""
        store = self._parts.store
        for digest in (*tree.manifests, *tree.blobs):
            if not store.has(digest):
                raise StorageError(store.problem or f"{digest} was fetched, but could not be stored")

    # -- layers -------------------------------------------------------------------------------------------------------

    async def _fetch_layers(self, view: RepositoryView, layers: Sequence[Layer]) -> None:
        """Fetch layers in parallel; when one fails, the others are still fetched, since a repetition needs them."""
        results = await asyncio.gather(
            *(self._fetch_layer(view, layer) for layer in layers),
            return_exceptions=True,
        )
        for result in results:
            if result is not None:
                raise result

    async def _fetch_layer(self, view: RepositoryView, layer: Layer) -> None:
        async with self._layer_slots:
            layer.was_stored = self._parts.store.has(layer.digest)
            layer.state = State.RUNNING
            self._promised.pop(layer.digest, None)
            try:
                await self._parts.blobs.fetch(view, layer.digest)
            except HubcacheError as error:
                layer.state, layer.error = State.FAILED, str(error)
                raise
            layer.state = State.STORED


def _sentence(error: HubcacheError, name: ImageName) -> str:
    """Return why an image could not be fetched, for the operator."""
    match error:
        case Unauthorized() | Denied():
            return (
                f"{name.host} refuses it: the image is private or does not exist; only images that everybody can read "
                "are fetched without a client's credentials"
            )
        case TooManyRequests(retry_after=seconds) if seconds is not None:
            return f"the rate limit of {name.host} is used up; repeat the command in {round(seconds)} seconds"
        case _:
            return str(error)
