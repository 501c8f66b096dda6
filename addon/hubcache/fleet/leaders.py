"""The nodes that have just fetched manifests: each has the blobs of these images, or fetches them next."""

import time
from collections.abc import Callable

from cachetools import TTLCache

from .events import Members
from .membership import Node

_LEADER_SECONDS = 120.0
"""How long after it fetched a manifest a node is asked for the blobs: most of them are in the bucket then."""

_AVOID_SECONDS = 30.0
"""How long a node that did not answer is not asked: each blob of its images would wait again."""

_MAX_LEADERS = 10_000


class Leaders:
    """The last node that fetched a manifest of a repository, for the repositories that this node has read.

    A leader saves requests to the bucket and protects nothing: a wrong one has not got the blob.
    """

    def __init__(self, members: Members, clock: Callable[[], float] = lambda: time.monotonic()) -> None:
        self._members = members
        self._leaders: TTLCache[tuple[str, str], str] = TTLCache(_MAX_LEADERS, _LEADER_SECONDS, clock)
        """The ids of nodes, by registry's host and repository."""
        self._avoided: TTLCache[str, None] = TTLCache(_MAX_LEADERS, _AVOID_SECONDS, clock)

    def record(self, host: str, repository: str, node: str, age: float) -> None:
        """Record which node has fetched a manifest of a repository, `age` seconds ago."""
        if age < _LEADER_SECONDS:
            self._leaders[host, repository] = node

    def find(self, host: str, repository: str) -> Node | None:
        """Return the node to ask for blobs of a repository; None where there is none, or it is this node."""
        leader = self._leaders.get((host, repository))
        if leader is None or self.is_avoided(leader) or leader == self._members.me.id:
            return None
        # Its address is that of its heartbeat: an answer in the bucket could name any address.
        return next((node for node in self._members.nodes if node.id == leader), None)

    def is_avoided(self, node: str) -> bool:
        """Whether a node is to be asked for nothing, see `avoid`."""
        return node in self._avoided

    def avoid(self, node: str) -> None:
        """Ask a node for nothing for some time: it did not answer."""
        self._avoided[node] = None
