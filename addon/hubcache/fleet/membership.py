"""The nodes of a fleet: each writes an object into the bucket every few seconds, and lists those of the others."""

import asyncio
import contextlib
import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from itertools import batched

from . import keys
from .bucket import Bucket, BucketUnavailable, Entry
from .clock import BucketClock
from .tasks import end_task, start_task
from .values import decode_value, encode_value

HEARTBEAT_SECONDS = 10.0
"""Time between two heartbeats. A node's heartbeats are 17,280 requests a day (a write and a list each)."""

LIVE_SECONDS = 35.0
"""A node whose last heartbeat is older is not live: three heartbeats were missed."""

MAX_NODES = 1000
"""Nodes of a fleet, with this one. Those that are known already come first."""

_MAX_LISTED = 10_000
"""Objects of nodes that are listed; sweeps delete those of nodes that have disappeared after an hour."""

_READS = 16
"""Addresses that are read at the same time."""

_LEAVE_SECONDS = 2.0
"""A node that leaves waits this long for the end of a heartbeat."""

_REREAD_SECONDS = 60.0
"""A changed entity tag is a reason to read an address again, but no more often: some stores change it at each write."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ADDRESS = re.compile(
    r"http://(?:(?P<name>[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?)|\[(?P<ip6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\])"
    r":(?P<port>[0-9]{1,5})"
)
"""A name has labels of up to 63 characters (RFC 1123 section 2.1): libraries raise errors of many types for others."""
_MAX_HOST_NAME = 253
_MAX_VERSION = 100
_MAX_VALUE = 4096


@dataclass(frozen=True, slots=True)
class Node:
    """A cache of the fleet: `address` is `http://HOST:PORT`, at which other nodes reach it; `version` is hubcache's."""

    id: str
    address: str
    version: str

    def __post_init__(self) -> None:
        """Raises `ValueError` for an id that is not a key, an address that is not just a host and a port, and a version
        that is not a short text."""
        if not _ID.fullmatch(self.id):
            raise ValueError(f"not an id of a node: {self.id!r}")
        found = _ADDRESS.fullmatch(self.address)
        if found is None or not 1 <= int(found["port"]) <= 65535 or len(found["name"] or "") > _MAX_HOST_NAME:
            raise ValueError(f"not an address http://HOST:PORT: {self.address!r}")
        if found["ip6"] is not None:
            IPv6Address(found["ip6"])
        if not self.version.isprintable() or len(self.version) > _MAX_VERSION:
            raise ValueError(f"not a version: {self.version!r}")


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of another node; `node` is None when its object cannot be used."""

    node: Node | None
    e_tag: str
    read_at: float


class Membership:
    """This node's heartbeat, and the live nodes of the fleet as of the last heartbeat that succeeded.

    While the bucket is down, the last known nodes stay: they may be reachable, and requests to those that are not fail
    by themselves.
    """

    def __init__(self, bucket: Bucket, clock: BucketClock, me: Node) -> None:
        self.me = me
        self._bucket = bucket
        self._clock = clock
        self._others: tuple[Node, ...] = ()
        self._known: dict[str, _Known] = {}
        self._listed_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._leaves = False
        self._wake = asyncio.Event()
        """Set when the next heartbeat is to be sent at once, or the node leaves."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The live nodes; this node is the first."""
        return (self.me, *self._others)

    def is_live(self, id: str) -> bool:
        """Whether a node's heartbeats arrive."""
        return any(node.id == id for node in self.nodes)

    async def start(self) -> None:
        """Send the first heartbeat, and the others from a task. A bucket that is down is no error."""
        await self._try_to_beat()
        self._task = start_task(self._beat_repeatedly(), name="heartbeat of the fleet")

    async def close(self) -> None:
        """Stop, and delete this node's object, so that the others do not wait for it."""
        if self._task is None:
            return
        self._leaves = True
        self._wake.set()
        await asyncio.wait((self._task,), timeout=_LEAVE_SECONDS)  # else a write in progress may follow the deletion
        await end_task(self._task)
        self._task = None
        with contextlib.suppress(BucketUnavailable):
            await self._bucket.delete(keys.node(self.me.id))

    def beat_soon(self) -> None:
        """Send the next heartbeat at once: another node has joined."""
        self._wake.set()

    async def beat(self) -> None:
        """Write this node's object and list all. Raises `BucketUnavailable`."""
        sent = self._clock.ticks()
        await self._bucket.ping(keys.node(self.me.id), _encode(self.me))
        received = self._clock.ticks()
        entries = await self._list()
        if own := entries.pop(self.me.id, None) or await self._bucket.head(keys.node(self.me.id)):
            self._clock.observe(own.modified, sent, received)
        live_since = self._live_since()
        live = self._limited({id: entry for id, entry in entries.items() if entry.modified >= live_since})
        nodes: list[Node | None] = []
        for some in batched(live.items(), _READS):
            nodes += await asyncio.gather(*(self._node(*each) for each in some))
        self._others = tuple(node for node in nodes if node is not None)
        self._known = {id: known for id, known in self._known.items() if id in live}
        self._listed_at = self._clock.ticks()

    async def _list(self) -> dict[str, Entry]:
        """Return the objects of nodes, by the nodes' ids."""
        entries: dict[str, Entry] = {}
        listed = 0
        async for entry in self._bucket.list(keys.NODES):
            if entry.size <= _MAX_VALUE:
                entries[entry.key.removeprefix(f"{keys.NODES}/")] = entry
            listed += 1
            if listed == _MAX_LISTED:
                break
        return entries

    def _limited(self, live: dict[str, Entry]) -> dict[str, Entry]:
        """Return the objects of at most `MAX_NODES` nodes without this one, in the same order."""
        if len(live) < MAX_NODES:
            return live
        known_first = sorted(live, key=lambda id: id not in self._known or self._known[id].node is None)
        chosen = set(known_first[: MAX_NODES - 1])
        return {id: entry for id, entry in live.items() if id in chosen}

    async def _beat_repeatedly(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            if self._leaves:
                return
            await self._try_to_beat()

    async def _try_to_beat(self) -> None:
        with contextlib.suppress(BucketUnavailable):
            await self.beat()

    def _live_since(self) -> float:
        """Return the bucket's time at or after which a live node has sent a heartbeat.

        When the bucket was down, the others could not send one either. Time beyond a heartbeat since this node's last
        list is therefore not counted.
        """
        now = self._clock.now()
        if self._listed_at is None:
            return now - LIVE_SECONDS
        missed = max(0.0, self._clock.ticks() - self._listed_at - HEARTBEAT_SECONDS)
        return now - LIVE_SECONDS - missed

    async def _node(self, id: str, entry: Entry) -> Node | None:
        """Return another node from memory, or read its object when it is new or may have changed."""
        now = self._clock.ticks()
        known = self._known.get(id)
        if known is not None and (known.e_tag == entry.e_tag or now < known.read_at + _REREAD_SECONDS):
            return known.node
        found = await self._bucket.get(entry.key)
        node = _decode(id, found.value) if found is not None else None
        self._known[id] = _Known(node, entry.e_tag, now)
        return node


def _encode(node: Node) -> bytes:
    return encode_value({"address": node.address, "version": node.version})


def _decode(id: str, value: bytes) -> Node | None:
    """Return a node; None for a value that this version does not understand."""
    match decode_value(value, _MAX_VALUE):
        case {"address": str(address), "version": str(version)}:
            with contextlib.suppress(ValueError):
                return Node(id, address, version)
    return None
