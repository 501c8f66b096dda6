"""Replays a trace on a fleet: nodes with stores of their own, and one bucket, with the policies that the program uses.

The requests of a pull come from one client, and each client uses one node. Clients are drawn with Zipf's distribution
(exponent 0.8, as in the generator), independently of what they pull; client `i` uses node `i mod N`. Nodes are replaced
by new ones with empty stores after a fixed time, one after the other.

A node receives a blob from the registry and uploads it at `_RATE`. Until both have ended, other nodes receive it from
this node. Sweeps are simulated when no more bytes are free, and every six hours instead of every ten minutes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random

from hubcache.decide.bucket_plan import BucketPlan, RankClock, SummedCounts
from hubcache.decide.retention import Retention
from hubcache.fleet.room import GRANT_SHARES, GRANT_USE_SECONDS, LARGEST_SHARE
from hubcache.fleet.sweep_state import TARGET_SHARE, grantable

from .policies import DAY, Hubcache
from .replay import WARM_UP
from .trace import Kind, Trace

CLIENTS = 5000
CLIENT_EXPONENT = 0.8
_RATE = 50e6
"""Bytes a second."""
_PART = 8 << 20
"""Bytes of a part of an upload, as in `hubcache.fleet.bucket`."""
_SWEEP_SECONDS = DAY / 4
_RENEW_SECONDS = 5.0
"""Time between two renewals of a lease, as in `hubcache.fleet.leases`."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The fleet to simulate: sizes of the store of each node and of the bucket in bytes, times in seconds."""

    nodes: int
    store: int
    bucket: int
    lifetime: float
    """After this time a node is replaced; 0 for never."""
    tag_ttl: float = 60.0
    half_life: float = 7 * DAY
    expire_after: float = 30 * DAY
    admit_after: int = 2
    admits_absent: bool = True
    """Whether a full store always admits content that the bucket does not have, as `fleet/passing_blobs` does."""
    seed: int = 46


@dataclass(slots=True)
class FleetScore:
    """What was counted after the warm-up: `requests` and `bytes` by tier, and requests to the bucket by kind.

    `validations` are the requests to the registry for the digest of a tag. `new_bytes` are the bytes of content that
    was requested for the first time: no fleet can fetch less. `most` are the most bytes that the bucket had.
    """

    pulls: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    bucket: Counter[str] = field(default_factory=Counter)
    validations: int = 0
    new_bytes: int = 0
    uploaded: int = 0
    most: int = 0


class _Node:
    """A node: its store, the part of its grant that it has not used, and when it knows that its tags were validated."""

    def __init__(self, fleet: Fleet, replaced_at: float) -> None:
        self._fleet = fleet
        self.replaced_at = replaced_at
        self.renew()

    def renew(self) -> None:
        fleet = self._fleet
        self.policy = Hubcache(fleet.store, Retention(fleet.half_life, fleet.expire_after, fleet.admit_after))
        self.validated: dict[int, float] = {}
        self.granted = 0
        self.granted_at = 0.0

    def request(self, key: int, size: int, now: float, *, must_admit: bool) -> bool:
        """Whether a request is a hit. With `must_admit`, content is stored whatever has to be evicted for it."""
        retention = self.policy.retention
        excess = size - (self._fleet.store - retention.bytes)
        if must_admit and key not in retention and 0 < excess <= retention.bytes:
            retention.evict(excess, now, lambda _: False)
        return self.policy.request(0, now, key, size)

    def has(self, key: int) -> bool:
        return key in self.policy.retention


class FleetReplay:
    """The state of a simulation."""

    def __init__(self, trace: Trace, fleet: Fleet) -> None:
        self.score = FleetScore()
        self._trace = trace
        self._fleet = fleet
        start = trace.times[0] if len(trace) else 0.0
        share = fleet.lifetime / fleet.nodes
        self._nodes = [_Node(fleet, start + share * (number + 1)) for number in range(fleet.nodes)]
        self._blobs: dict[int, float] = {}
        """By blob in the bucket, the time at which its upload ends."""
        self._manifests: dict[int, float] = {}
        """By manifest in the bucket, the time of the last request to the bucket."""
        self._validated: dict[int, float] = {}
        """By tag, the time of the last validation by any node."""
        self._used = 0
        self._counts = SummedCounts(fleet.half_life)
        self._clock = RankClock()
        self._swept_at = start

    def run(self) -> FleetScore:
        """Replay all requests."""
        trace, lifetime = self._trace, self._fleet.lifetime
        first, seen, resolved = int(len(trace) * WARM_UP), set[int](), set[int]()
        for index, node in enumerate(self._nodes_of_requests()):
            now, key, pull = trace.times[index], trace.keys[index], trace.pulls[index]
            size = trace.sizes[key]
            if index == first:
                self.score, resolved = FleetScore(most=self._used), set[int]()
            while lifetime and now >= node.replaced_at:
                node.renew()
                node.replaced_at += lifetime
            if trace.kinds[key] == Kind.MANIFEST and (pull < 0 or pull not in resolved):
                resolved.add(pull)
                self.score.pulls += 1
                self._resolve_tag(node, key, now)
            tier = self._request(node, key, now)
            self.score.requests[tier] += 1
            self.score.bytes[tier] += size
            if key not in seen:
                seen.add(key)
                self.score.new_bytes += size
        return self.score

    def _nodes_of_requests(self) -> Iterator[_Node]:
        random, nodes = Random(self._fleet.seed), self._nodes
        steps = list(accumulate((client + 1) ** -CLIENT_EXPONENT for client in range(CLIENTS)))
        clients = random.choices(range(CLIENTS), cum_weights=steps, k=self._trace.pull_count)
        for pull in self._trace.pulls:
            client = clients[pull] if pull >= 0 else random.choices(range(CLIENTS), cum_weights=steps)[0]
            yield nodes[client % len(nodes)]

    # -- tags ---------------------------------------------------------------------------------------------------------

    def _resolve_tag(self, node: _Node, key: int, now: float) -> None:
        """The first manifest of a pull is requested by a tag."""
        score, ttl = self.score, self._fleet.tag_ttl
        if now - node.validated.get(key, -ttl) < ttl:
            return
        score.bucket["get"] += 1
        if now - self._validated.get(key, -ttl) >= ttl:
            score.bucket["put"] += 2  # the lease and the tag
            score.bucket["get"] += 1  # the tag again, with the lease
            score.validations += 1
            self._validated[key] = now
        node.validated[key] = self._validated[key]

    # -- content ------------------------------------------------------------------------------------------------------

    def _request(self, node: _Node, key: int, now: float) -> str:
        """Return the tier that answers a request: the node's own "store", the "peer" that receives the content, the
        "bucket", or the "registry"."""
        size, is_manifest = self._trace.sizes[key], self._trace.kinds[key] == Kind.MANIFEST
        self._counts.add(key, 1.0, now)
        is_shared = self._has_manifest(key, now) if is_manifest else key in self._blobs
        if node.request(key, size, now, must_admit=self._fleet.admits_absent and not is_shared):
            return "store"
        self.score.bucket["get"] += 1
        if is_manifest:
            return self._manifest(key, now, is_shared=is_shared)
        return self._blob(node, key, size, now, is_shared=is_shared)

    def _has_manifest(self, key: int, now: float) -> bool:
        return now - self._manifests.get(key, -self._fleet.expire_after) < self._fleet.expire_after

    def _manifest(self, key: int, now: float, *, is_shared: bool) -> str:
        self._manifests[key] = now
        if is_shared:
            return "bucket"
        self.score.bucket["get"] += 1
        self.score.bucket["put"] += 2  # the lease and the manifest
        return "registry"

    def _blob(self, node: _Node, key: int, size: int, now: float, *, is_shared: bool) -> str:
        score = self.score
        if is_shared and now >= self._blobs[key]:
            return "bucket"
        if is_shared:
            score.bucket["put"] += 1  # the lease, which the other node has
            score.bucket["get"] += 1
            return "peer"
        if node.has(key):  # content that the store refuses is not uploaded
            seconds = size / _RATE
            score.bucket["get"] += 1
            score.bucket["put"] += 1 + int(2 * seconds / _RENEW_SECONDS)
            if self._take(node, size, now):
                self._blobs[key] = now + 2 * seconds
                self._used += size
                score.uploaded += size
                score.most = max(score.most, self._used)
                score.bucket["put"] += 1 if size <= _PART else 2 + -(-size // _PART)
        return "registry"

    def _take(self, node: _Node, size: int, now: float) -> bool:
        """Take bytes of the bucket as `hubcache.fleet.room` does; returns whether there were enough."""
        cap = self._fleet.bucket
        if size > cap // LARGEST_SHARE:
            return False
        if now - self._swept_at >= _SWEEP_SECONDS or self._used + size > grantable(cap):
            self._sweep(size, now)
        if self._used + size > grantable(cap):
            return False
        if node.granted < size or now - node.granted_at > GRANT_USE_SECONDS:
            free = grantable(cap) - self._used
            node.granted, node.granted_at = max(size, free // (GRANT_SHARES * len(self._nodes))), now
            self.score.bucket["get"] += 2  # to take the bytes, and to give back what was not used
            self.score.bucket["put"] += 2
        node.granted -= size
        return True

    def _sweep(self, needed: int, now: float) -> None:
        cap, sizes = self._fleet.bucket, self._trace.sizes
        free = max(cap - int(cap * TARGET_SHARE), cap - grantable(cap) + needed)
        plan = BucketPlan(now, self._counts, self._clock, self._fleet.expire_after)
        for key, modified in self._blobs.items():
            plan.add(str(key), key, sizes[key], modified)
        idle = sum(each.size for each in plan.idle)
        for eviction in [*plan.idle, *plan.choose(self._used - idle + free - cap)]:
            del self._blobs[int(eviction.key)]
            self._used -= eviction.size
        self._clock = plan.clock
        self._swept_at = now
