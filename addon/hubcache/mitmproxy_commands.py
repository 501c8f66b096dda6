"""Commands of mitmproxy: `hubcache.status` and others, for mitmweb's command bar, the console and scripts.

mitmproxy's commands return at once. One that takes longer continues in the background, and logs its result, which
mitmweb shows in its event log.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from mitmproxy import command, exceptions

from .control.commands import Commands
from .control.http import parse_image
from .mitm import amounts
from .oci.digest import Digest
from .oci.errors import DigestInvalid, HubcacheError
from .oci.image_name import ImageName

logger = logging.getLogger("hubcache")

_MAX_IMAGES = 200
"""Images that `hubcache.images` logs; `hubcache ls` lists all."""
_LATER = "the event log shows the result"


def _named[F: Callable[..., Any]](name: str) -> Callable[[F], F]:
    """Return mitmproxy's decorator for the command of that name, with the types that it lacks."""
    decorate: Callable[[F], F] = command.command(name)
    return decorate


class MitmproxyCommands:
    """The commands, which call those of the control socket. They are refused until the cache serves."""

    def __init__(self) -> None:
        self.commands: Commands | None = None
        """None in a worker process, and until the store is open."""
        self._running: set[asyncio.Task[str]] = set()

    @_named("hubcache.status")
    def status(self) -> Sequence[str]:
        """Show the store, the share of requests that were answered from it, upstreams and rate limits."""
        return list(_status_lines(self._serving().status()))

    @_named("hubcache.images")
    def images(self) -> str:
        """List the stored images in the event log, the largest first."""
        return self._run("hubcache.images", self._images(self._serving()))

    @_named("hubcache.pin")
    def pin(self, image: str) -> str:
        """Keep an image in the store, whether it is stored already or not."""
        return self._run("hubcache.pin", _message(self._serving().pins.pin(_image(image))))

    @_named("hubcache.unpin")
    def unpin(self, image: str) -> str:
        """Undo hubcache.pin; the image may be removed from the store when space is needed."""
        return self._run("hubcache.unpin", _message(self._serving().pins.unpin(_image(image))))

    @_named("hubcache.purge")
    def purge(self, image: str) -> str:
        """Remove an image from the store (debian:12), or content by its digest (sha256:...)."""
        commands = self._serving()
        try:
            work = commands.purge.content(Digest.parse(image))
        except DigestInvalid:
            work = commands.purge.image(_image(image))
        return self._run("hubcache.purge", _purge(work))

    @_named("hubcache.warm")
    def warm(self, image: str, *platforms: str) -> str:
        """Fetch an image into the store, for the given platforms (linux/amd64) or for all."""
        try:
            events = self._serving().warm.prepare([image], platforms or None, keep=False)
        except HubcacheError as error:
            raise exceptions.CommandError(str(error)) from error
        return self._run("hubcache.warm", _warm(image, events))

    @_named("hubcache.verify")
    def verify(self, repair: bool = False) -> str:
        """Read and verify all stored content; with true, also fetch again what is damaged or missing."""
        return self._run("hubcache.verify", _verify(self._serving().verify.run(repair=repair)))

    def stop(self) -> None:
        """Cancel what runs, and refuse further commands."""
        self.commands = None
        for task in self._running:
            task.cancel()

    # -- parts ----------------------------------------------------------------------------------------------------

    def _serving(self) -> Commands:
        if self.commands is None:
            raise exceptions.CommandError("the cache does not serve: the log says why")
        return self.commands

    def _run(self, name: str, work: Coroutine[Any, Any, str]) -> str:
        """Run a command. Return its result, or raise its error, if it ends without waiting; log them otherwise."""
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        if not task.done():
            self._running.add(task)
            task.add_done_callback(lambda task: self._ended(name, task))
            return f"{name}: {_LATER}"
        try:
            return task.result()
        except HubcacheError as error:
            raise exceptions.CommandError(str(error)) from error

    def _ended(self, name: str, task: asyncio.Task[str]) -> None:
        self._running.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            logger.info("hubcache: %s: %s", name, task.result())
        else:
            logger.error("hubcache: %s: %s", name, error, exc_info=None if isinstance(error, HubcacheError) else error)

    async def _images(self, commands: Commands) -> str:
        images = await commands.images.list()
        lines = map(_image_line, sorted(images, key=lambda image: -image["stored_bytes"])[:_MAX_IMAGES])
        more = [f"… {len(images) - _MAX_IMAGES} more"] if len(images) > _MAX_IMAGES else []
        return "\n".join([f"{len(images)} images", *lines, *more])


def _image(text: str) -> ImageName:
    try:
        return parse_image(text)
    except HubcacheError as error:
        raise exceptions.CommandError(str(error)) from error


async def _message(work: Coroutine[Any, Any, dict[str, Any]]) -> str:
    return str((await work)["message"])


async def _purge(work: Coroutine[Any, Any, dict[str, Any]]) -> str:
    done = await work
    removed = f"{len(done['removed'])} manifests and blobs were removed, {amounts.size(done['bytes'])}"
    kept = f"; {len(done['kept'])} stay, which other images use" if done["kept"] else ""
    return f"{done['purged']}: {removed}{kept}"


async def _warm(image: str, events: Any) -> str:
    """Fetch an image, and return what was done."""
    error, size = "", 0
    async for event in events:
        if event.get("kind") == "image":
            error, size = event["error"] or "", event["size"]
    if error:
        return f"{image} is not stored: {error}"
    received, requests = amounts.size(event["received"]), event["upstream_requests"]
    return f"{image} is stored, {amounts.size(size)}; {received} were fetched with {requests} upstream requests"


async def _verify(events: AsyncGenerator[dict[str, Any]]) -> str:
    """Verify the content, log what is wrong, and return the counts."""
    done: dict[str, Any] = {}
    async with aclosing(events):
        async for event in events:
            if event.get("error"):
                logger.warning("hubcache: hubcache.verify: %s: %s", event["digest"], event["error"])
            done = event
    states = ("good", "damaged", "missing", "repaired", "not_repairable")
    counts = [f"{done[state]} {state.replace('_', ' ')}" for state in states if done[state]]
    total = f"{amounts.size(done['bytes'])} were read in {amounts.duration(done['seconds'])}"
    return f"{total}: {', '.join(counts) or 'nothing is stored'}"


def _image_line(image: dict[str, Any]) -> str:
    stored, size = amounts.size(image["stored_bytes"]), amounts.size(image["size"])
    amount = stored if image["complete"] else f"{stored} of {size}"
    facts = [amount, *image["platforms"], *(name for name in ("pinned", "private") if image[name])]
    return f"{image['name']}: {', '.join(facts)}"


def _status_lines(status: dict[str, Any]) -> Iterable[str]:
    store = status["store"]
    yield f"hubcache {status['version']}, running for {amounts.duration(status['uptime'])}"
    yield (
        f"store: {amounts.size(store['bytes'])} of {amounts.size(store['capacity'])}, {store['objects']} objects, "
        f"{store['directory']}"
    )
    if store["problem"]:
        yield f"not storing: {store['problem']}"
    yield from (f"problem: {problem}" for problem in status["problems"])
    for name, traffic in status["ratio"].items():
        if traffic["requests"]:
            from_store, sent = amounts.size(traffic["bytes_from_store"]), amounts.size(traffic["bytes"])
            requests = f"{traffic['hits']} of {traffic['requests']} requests"
            yield f"last {name}: {requests}, {from_store} of {sent} from the store"
    for upstream in status["upstreams"]:
        yield f"{upstream['registry']}: " + ("up" if upstream["is_up"] else f"down: {upstream['reason']}")
    for limit in status["ratelimit"]:
        yield f"{limit['registry']} ({limit['credential']}): {limit['remaining']} of {limit['limit']} pulls remain"
