"""Reports to the other nodes what changes their answers at once: pushes, deletes and pauses of a registry.

An event saves time and requests, and protects nothing: a node that does not receive one goes on with what it knows
until that expires.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from ..oci.errors import HubcacheError
from .membership import Node
from .values import number_field, text_field

logger = logging.getLogger("hubcache")

_RETRY_SECONDS = (0.2, 1.0, 3.0, 9.0)
"""Pauses before the event is sent again to a node that cannot be reached."""

_LONGEST_PAUSE_SECONDS = 3600.0
"""Longest pause that is accepted; `transfer/retry_after` accepts no longer one of a registry either."""

_MAX_TEXT = 1000
"""Characters of a name in an event."""

type ContentChanged = Callable[[str, str, str, bool, str | None], Awaitable[None]]
"""Gets a registry's host, repository, reference, whether that is a blob's digest, and a subject's digest or None."""

type Pause = Callable[[str, str, float], None]
"""Gets a registry's host, a kind of content, and seconds."""


class Peers(Protocol):
    """Sends events to other nodes."""

    async def send_event(self, address: str, fields: Mapping[str, object]) -> None:
        """Send an event to the node at an address; raises a `HubcacheError` when it does not accept it."""


class Members(Protocol):
    """The nodes of the fleet."""

    @property
    def me(self) -> Node:
        """This node."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The live nodes."""


class Events:
    """Sends events to all live nodes, and passes those that arrive to `content_changed` and `pause`."""

    def __init__(self, members: Members, peers: Peers, content_changed: ContentChanged, pause: Pause) -> None:
        self._members = members
        self._peers = peers
        self._content_changed = content_changed
        self._pause = pause
        self.on_joined: Callable[[], None] = lambda: None
        """Called when another node reports that it has joined."""
        self._tasks: set[asyncio.Task[None]] = set()

    # -- sending ----------------------------------------------------------------------------------------------------

    async def report_change(
        self, host: str, repository: str, reference: str, is_blob: bool, subject: str | None
    ) -> None:
        """Report a push or delete; returns when each node has received it or could not be reached at once.

        The arguments are those of `ContentChanged`.
        """
        fields = {"repository": repository, "reference": reference, "is_blob": is_blob, "subject": subject}
        await asyncio.gather(*self._send({"changed": host, **fields}), return_exceptions=True)

    def report_join(self) -> None:
        """Report that this node has joined, so that the others send it their events from now on."""
        self._send({"joined": self._members.me.id})

    def report_pause(self, host: str, kind: str, seconds: float) -> None:
        """Report that a registry answered 429 to an anonymous request, and how long to pause."""
        self._send({"paused": host, "kind": kind, "seconds": seconds})

    def _send(self, fields: Mapping[str, object]) -> Iterable[asyncio.Future[None]]:
        """Start sending an event; each future is done after the first attempt to send it to a node."""
        others = [node for node in self._members.nodes if node.id != self._members.me.id]
        return [self._send_to(node, fields) for node in others]

    def _send_to(self, node: Node, fields: Mapping[str, object]) -> asyncio.Future[None]:
        attempted = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._deliver(node, fields, attempted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return attempted

    async def _deliver(self, node: Node, fields: Mapping[str, object], attempted: asyncio.Future[None]) -> None:
        """Send an event, several times if the node cannot be reached and is not known to be gone."""
        try:
            for pause in (*_RETRY_SECONDS, None):
                try:
                    await self._peers.send_event(node.address, fields)
                    return
                except HubcacheError as error:
                    if pause is None:
                        logger.info("hubcache: %s does not receive events: %s", node.id, error)
                        return
                if not attempted.done():
                    attempted.set_result(None)
                await asyncio.sleep(pause)
                if all(each.id != node.id for each in self._members.nodes):
                    return
        finally:
            if not attempted.done():
                attempted.set_result(None)

    async def close(self) -> None:
        """Give up events that were not delivered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- receiving --------------------------------------------------------------------------------------------------

    async def receive(self, fields: Mapping[str, object]) -> None:
        """Handle an event of another node; one that this version does not know is ignored."""
        host = _text(fields, "changed")
        if host is not None:
            await self._receive_change(host, fields)
        if _text(fields, "joined") is not None:
            self.on_joined()
        host = _text(fields, "paused")
        if host is not None:
            kind, seconds = _text(fields, "kind"), number_field(fields, "seconds")
            if kind is not None and seconds is not None and seconds > 0:
                self._pause(host, kind, min(seconds, _LONGEST_PAUSE_SECONDS))

    async def _receive_change(self, host: str, fields: Mapping[str, object]) -> None:
        repository, reference = _text(fields, "repository"), _text(fields, "reference")
        if repository is not None and reference is not None:
            is_blob, subject = fields.get("is_blob") is True, _text(fields, "subject")
            await self._content_changed(host, repository, reference, is_blob, subject)


def _text(fields: Mapping[str, object], name: str) -> str | None:
    text = text_field(fields, name)
    return text if text is not None and len(text) <= _MAX_TEXT else None
