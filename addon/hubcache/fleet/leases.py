"""Leases in the bucket: one node of a fleet does some work, and the others wait for its result.

A lease is an object that the holder creates (`If-None-Match: *`), renews and deletes. When it was not renewed for some
time, another node replaces it (`If-Match`). A lease saves work and protects nothing: two nodes may believe for a moment
that they hold it, when one was stopped or cut off, and then both do the work.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from . import keys
from .bucket import Bucket, BucketUnavailable, StoredObject
from .membership import Node
from .retired_leases import RETIRED_SECONDS, UNCONDITIONAL_SECONDS, RetiredLease, RetiredLeases
from .values import decode_value, encode_value, text_field

LEASE_SECONDS = 20.0
"""A lease that was not renewed for this time, by the bucket's clock, has expired."""

_RENEW_SECONDS = 5.0
_RETRY_SECONDS = 1.0
"""Pause after a renewal that failed."""
_LOOK_SECONDS = 0.1
"""A conditional write that is not answered within this time has probably lost a race: SeaweedFS answers losers after 1
to 6 seconds. Meanwhile the lease is read, to find out who holds it."""
_ATTEMPTS = 4
"""Attempts to acquire a lease that changes hands meanwhile."""


class Clock(Protocol):
    """The bucket's time."""

    def now(self) -> float:
        """Return the seconds since the epoch by the bucket's clock."""


class Identity(Protocol):
    """A node as the others know it."""

    @property
    def id(self) -> str:
        """Its name in the fleet."""

    @property
    def address(self) -> str:
        """The URL at which other nodes reach it, `http://host:port`."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The node that holds a lease; `modified` is when it was last renewed, by the bucket's clock.

    `node` and `address` are empty when a newer version wrote the lease in a format that this one cannot read, and
    `address` when it is not one of a node.
    """

    node: str
    address: str
    modified: float


class Lease:
    """A lease that this node holds. It is renewed in the background until `release`."""

    def __init__(
        self, bucket: Bucket, me: Identity, name: str, ended: Callable[["Lease"], None], retired: RetiredLeases
    ) -> None:
        """`ended` is called when the lease is released."""
        self.name = name
        self._key = keys.lease(name)
        self._bucket = bucket
        self._me = me
        self._ended = ended
        self._retired = retired
        self.released = asyncio.Event()
        """Set when this node does not hold the lease any more, or did not acquire it."""
        self._token = secrets.token_hex(8)
        """Distinguishes this lease from other leases of the same name."""
        self._e_tag = ""
        self._renewed_at = 0.0
        """When the last renewal that succeeded was sent (monotonic clock)."""
        self.created_at = math.inf
        """When the lease was created (monotonic clock); infinite where it replaced another one."""
        self.was_acquired = False
        self._was_taken = False
        self._renewing: asyncio.Task[None] | None = None

    @property
    def is_lost(self) -> bool:
        """Whether another node has the lease, or may take it because it could not be renewed."""
        return self._was_taken or time.monotonic() - self._renewed_at > LEASE_SECONDS

    def shows_absence_since(self, looked_at: float) -> bool:
        """Whether no other node has stored the result after a request for it that was sent at a time of the monotonic
        clock and found none, see `retired_leases`."""
        return self.created_at - looked_at < RETIRED_SECONDS

    async def write(self, e_tag: str | None) -> bool:
        """Create the lease, or replace the version with this entity tag; returns whether this node has it now."""
        begun = time.monotonic()
        fields = {"node": self._me.id, "address": self._me.address, "token": self._token}
        value = encode_value(fields | {"nonce": secrets.token_hex(8)})  # S3's entity tags are hashes of the content
        if e_tag is None:
            written = await self._bucket.create(self._key, value)
        else:
            written = await self._bucket.replace(self._key, value, e_tag)
        if written is None:
            return False
        self._e_tag, self._renewed_at = written, begun
        return True

    def keep(self) -> None:
        """Renew the lease, which is acquired, from now on."""
        self.was_acquired = True
        self._renewing = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while not self._was_taken:
            await asyncio.sleep(_RENEW_SECONDS)
            while not self._was_taken:
                try:
                    await self._renew()
                    break
                except BucketUnavailable:
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _renew(self) -> bool:
        """Write the lease again; returns False when another node has it."""
        if await self.write(self._e_tag):
            return True
        found = await self._bucket.get(self._key)
        if found is not None and _token(found) == self._token:  # written by a request whose response was lost
            self._e_tag = found.entry.e_tag
            if await self.write(self._e_tag):
                return True
        self._was_taken = True
        return False

    def retire(self) -> None:
        """Release the lease after its result was stored: it is deleted later, together with others."""
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None
        self._ended(self)
        if not self.is_lost:
            self._retired.add(RetiredLease(self.name, self._e_tag, self._renewed_at))

    async def release(self, *, may_be_taken: bool = False) -> None:
        """Delete the lease, after a check if another task of this node may have taken it meanwhile. Where the bucket
        does not answer, the lease expires."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
            self._renewing = None
        self._ended(self)
        if self._was_taken:
            return
        is_held = not may_be_taken and time.monotonic() - self._renewed_at < UNCONDITIONAL_SECONDS
        with contextlib.suppress(BucketUnavailable):
            if is_held or await self._renew():
                await self._bucket.delete(self._key)


class Leases:
    """The leases of one node."""

    def __init__(self, bucket: Bucket, clock: Clock, me: Identity) -> None:
        self._bucket = bucket
        self._clock = clock
        self._me = me
        self._own: dict[str, Lease] = {}
        """Leases that this node holds or tries to acquire, by name."""
        self._retired = RetiredLeases(bucket)
        self._writing: set[asyncio.Task[Holder | None]] = set()
        self._releasing: set[asyncio.Task[None]] = set()

    @property
    def held(self) -> tuple[str, ...]:
        """The names of the leases that this node holds, or tries to acquire."""
        return tuple(self._own)

    async def acquire(self, name: str) -> Lease | Holder:
        """Acquire a lease that is free or has expired; else return its holder.

        The holder is this node itself when another task has the lease or tries to acquire it. Raises
        `BucketUnavailable`.
        """
        if name in self._own:
            return Holder(self._me.id, self._me.address, self._clock.now())
        lease = self._own[name] = Lease(self._bucket, self._me, name, self._forget, self._retired)
        with contextlib.ExitStack() as stack:
            stack.callback(self._forget, lease)
            writing = asyncio.create_task(self._write(lease))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)
            try:
                holder = await asyncio.shield(writing)
            except asyncio.CancelledError:
                self._give_up(lease, _is_none(writing))
                raise
            if holder is not None:
                return holder
            stack.pop_all()
        lease.keep()
        return lease

    async def _write(self, lease: Lease) -> Holder | None:
        """Write a new lease; returns None when this node has it, else its holder."""
        holder, e_tag = Holder("", "", self._clock.now()), await self._retired.take(lease.name)
        for _ in range(_ATTEMPTS):
            with contextlib.ExitStack() as stack:
                writing = asyncio.create_task(lease.write(e_tag))
                await asyncio.wait([writing], timeout=_LOOK_SECONDS)
                if not writing.done():
                    stack.callback(self._give_up, lease, writing)
                    found = await self._bucket.get(keys.lease(lease.name))
                    if found is not None and not self._may_take(holder := _holder(found)):
                        return holder
                if await writing:
                    stack.pop_all()
                    if e_tag is None:
                        lease.created_at = time.monotonic()
                    return None
            found, e_tag = await self._bucket.get(keys.lease(lease.name)), None
            if found is None:
                continue  # it has just been released
            if not self._may_take(holder := _holder(found)):
                break
            e_tag = found.entry.e_tag
        return holder

    def _may_take(self, holder: Holder) -> bool:
        """Whether a lease may be replaced: it has expired, or this node wrote it and the response was lost."""
        return holder.node == self._me.id or self._has_expired(holder)

    def _give_up(self, lease: Lease, written: Awaitable[bool]) -> None:
        """Release a lease that is written too late, or for a task that was cancelled: the other nodes would wait until
        it expires."""

        async def release() -> None:
            with contextlib.suppress(BucketUnavailable):
                if await written:
                    await lease.release(may_be_taken=True)

        releasing = asyncio.create_task(release())
        self._releasing.add(releasing)
        releasing.add_done_callback(self._releasing.discard)

    async def holder(self, name: str) -> Holder | None:
        """Return the holder of a lease; None when there is no lease, or it has expired. Raises `BucketUnavailable`."""
        found = await self._bucket.get(keys.lease(name))
        if found is None:
            return None
        holder = _holder(found)
        return None if self._has_expired(holder) else holder

    async def wait_released(self, name: str) -> bool:
        """Wait until this node has released a lease; returns False when it does not hold it, or does not acquire it."""
        lease = self._own.get(name)
        if lease is None:
            return self._retired.has(name)
        await lease.released.wait()
        return lease.was_acquired

    def is_own(self, holder: Holder) -> bool:
        """Whether this node is the holder."""
        return holder.node == self._me.id

    async def close(self) -> None:
        """Release all leases."""
        await asyncio.gather(*self._writing, return_exceptions=True)
        await asyncio.gather(*self._releasing, *(lease.release() for lease in tuple(self._own.values())))
        await self._retired.delete_all()

    def _has_expired(self, holder: Holder) -> bool:
        # Also if it was renewed in the future, before the bucket's clock was set back.
        return abs(self._clock.now() - holder.modified) > LEASE_SECONDS

    def _forget(self, lease: Lease) -> None:
        lease.released.set()
        if self._own.get(lease.name) is lease:
            del self._own[lease.name]


async def _is_none(work: Awaitable[object]) -> bool:
    return await work is None


def _holder(found: StoredObject) -> Holder:
    fields = decode_value(found.value) or {}
    identity, address = text_field(fields, "node") or "", text_field(fields, "address") or ""
    try:
        Node(identity, address, "")
    except ValueError:
        address = ""
    return Holder(identity, address, found.entry.modified)


def _token(found: StoredObject) -> str | None:
    return text_field(decode_value(found.value) or {}, "token")
