"""Makes a push or delete through one node known to the whole fleet."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from ..oci.digest import Digest
from ..oci.errors import DigestInvalid
from . import keys
from .bucket import BucketUnavailable
from .events import ContentChanged, Events
from .sharing import Sharing

_PATIENCE_SECONDS = 1.0
"""How long the answer to a push waits until the other nodes know of it; all that is not done by then goes on."""


class ContentChanges:
    """Drops shared answers, and reports changes to the other nodes and those of other nodes to this cache.

    `forget` makes this node's own cache forget what changed. `wall_clock` returns seconds since the epoch.
    """

    def __init__(self, sharing: Sharing, forget: ContentChanged, wall_clock: Callable[[], float] = time.time) -> None:
        self._sharing = sharing
        self._forget = forget
        self._wall_clock = wall_clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def report(
        self, events: Events, host: str, repository: str, reference: str, is_blob: bool, subject: str | None
    ) -> None:
        """Report a push or delete through this node, whose own cache has forgotten what changed.

        Returns when the other nodes have received it, or after a second. The arguments are those of `ContentChanged`.
        """
        self._sharing.record_change(host, repository, reference, self._wall_clock())
        task = asyncio.create_task(self._report(events, host, repository, reference, is_blob, subject))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait((task,), timeout=_PATIENCE_SECONDS)

    async def _report(
        self, events: Events, host: str, repository: str, reference: str, is_blob: bool, subject: str | None
    ) -> None:
        key = None if is_blob else _key(host, repository, reference)
        was_public = self._sharing.was_public(host, repository)
        if key is not None:
            # First the bucket: a node that has received the event finds no older answer there.
            await self._mark_changed(key, creates=was_public)
        await events.report_change(host, repository, reference, is_blob, subject)
        if key is not None and not was_public:  # an answer from before the push may have been written meanwhile
            await self._mark_changed(key, creates=False)

    async def _mark_changed(self, key: str, *, creates: bool) -> None:
        """Drop the answers in an object; without `creates`, the name of a repository that may be private is not
        written to the bucket."""
        with suppress(BucketUnavailable):
            await self._sharing.answers.mark_changed(key, creates=creates)

    async def receive(self, host: str, repository: str, reference: str, is_blob: bool, subject: str | None) -> None:
        """Forget what a push or delete through another node changed."""
        self._sharing.record_change(host, repository, reference, self._wall_clock())
        await self._forget(host, repository, reference, is_blob, subject)

    async def close(self) -> None:
        """Wait for the bucket; to be called after the events were closed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _key(host: str, repository: str, reference: str) -> str | None:
    """Return the key of the object about a reference; None for a reference that is malformed."""
    if ":" not in reference:
        return keys.tag(host, repository, reference)
    try:
        return keys.manifest(host, repository, Digest.parse(reference))
    except DigestInvalid:
        return None
