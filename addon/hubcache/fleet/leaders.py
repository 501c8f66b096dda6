"""The nodes that have just fetched manifests: each has the blobs of these images, or fetches them next."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TLRUCache, TTLCache

from .events import Members
from .membership import Node

_LEADING_SECONDS = 120.0
"""How long after it fetched a manifest a node is asked for the blobs: most of them are in the bucket then."""

_AVOID_SECONDS = 30.0
"""How long a node that did not answer is not asked: each blob of its images would wait again."""

_MAX_LEADERS = 10_000


@dataclass(frozen=True, slots=True)
class _Leader:
    """The id of a node, and until when (by the clock of `Leaders`) it is a leader."""

    node: str
    expires_at: float


class Leaders:
    """The last node that fetched a manifest of a repository, for the repositories that this node has read.

    A leader saves requests to the bucket and protects nothing: a node that is not the leader any more responds that it
    does not have the blob.
    """

    def __init__(self, members: Members, clock: Callable[[], float] = lambda: time.monotonic()) -> None:
        self._members = members
        self._clock = clock
        self._leaders: TLRUCache[tuple[str, str], _Leader] = TLRUCache(
            _MAX_LEADERS, lambda _, leader, __: leader.expires_at, clock
        )
        """By registry's host and repository."""
        self._avoided: TTLCache[str, None] = TTLCache(_MAX_LEADERS, _AVOID_SECONDS, clock)

    def record(self, host: str, repository: str, node: str, age: float) -> None:
        """Record which node has fetched a manifest of a repository, `age` seconds ago."""
        if age < _LEADING_SECONDS:
            self._leaders[host, repository] = _Leader(node, self._clock() + _LEADING_SECONDS - age)

    def find(self, host: str, repository: str) -> Node | None:
        """Return the node to ask for blobs of a repository; None where there is none, or it is this node."""
        leader = self._leaders.get((host, repository))
        if leader is None or self.is_avoided(leader.node) or leader.node == self._members.me.id:
            return None
        # Its address is that of its heartbeat: an answer in the bucket could name any address.
        return next((node for node in self._members.nodes if node.id == leader.node), None)

    def is_avoided(self, node: str) -> bool:
        """Whether no requests are to be sent to a node, see `avoid`."""
        return node in self._avoided

    def avoid(self, node: str) -> None:
        """Send no requests to a node for some time, because it did not answer."""
        self._avoided[node] = None
