"""The account of a bucket's bytes, and nodes that use it, for tests of grants and sweeps."""

from dataclasses import dataclass

from hubcache.decide.bucket_plan import RankClock
from hubcache.fleet.keys import SWEEP_STATE, blob
from hubcache.fleet.sweep_state import SweepState, Swept
from hubcache.oci.digest import Digest

from .fleet import TestNode
from .virtual_bucket import Objects
from .virtual_time import virtual_now

CAP = 1_000_000
DAY = 86400.0


@dataclass(frozen=True)
class Members:
    """The nodes of a fleet as one of them sees it."""

    me: TestNode
    alive: list[TestNode]

    @property
    def nodes(self) -> tuple[TestNode, ...]:
        return tuple(self.alive)

    @classmethod
    def of(cls, count: int) -> "list[Members]":
        """Return what each of these nodes, `node-0` and so on, sees."""
        alive = [TestNode(f"node-{number}") for number in range(count)]
        return [cls(me, alive) for me in alive]


def account(objects: Objects) -> SweepState:
    """Return the account."""
    state = SweepState.decode(objects.by_key[SWEEP_STATE][1])
    assert state is not None
    return state


def begin_account(objects: Objects, used: int = 0, age: float = 300.0) -> None:
    """Write the account of a sweep that was `age` seconds ago."""
    swept = Swept(virtual_now() - age, "node-0", {"blob": used}, {"blob": 1})
    objects.write(SWEEP_STATE, SweepState.begun(used, CAP, RankClock(), swept, is_lost=False).encode())


def digest(name: object) -> Digest:
    """Return the digest of a blob of this name."""
    return Digest.of(str(name).encode())


def add_blob(objects: Objects, name: object, size: int, age: float = 0.0) -> str:
    """Write a blob that was uploaded `age` seconds ago; returns its key."""
    key = blob(digest(name))
    objects.write(key, b"", size, age)
    return key
