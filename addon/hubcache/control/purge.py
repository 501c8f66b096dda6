"""Removes images, or content by its digest, from the store.

Counts of requests stay: the user removes content that is wrong or not needed, and if clients request it again
nevertheless, a full store should not refuse it as new. Remembered error answers stay, too, as they are not about stored
content.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ..oci.digest import Digest
from ..oci.image_name import ImageName
from ..store.pins import pinned_content
from .errors import NotKnown, Refused
from .fleet import FleetCommands
from .parts import Parts
from .purge_plan import Plan, Stored, Target, plan_purge


@dataclass(slots=True)
class _Removal:
    """The digests that were removed, with their bytes; those of them that clients are reading; and what is held."""

    removed: list[Digest] = field(default_factory=list)
    size: int = 0
    read: list[Digest] = field(default_factory=list)
    held: list[Digest] = field(default_factory=list)


class Purge:
    """Removes content as a delete through this proxy makes it invalid: tags, links and referrers are forgotten, and all
    processes drop their cached answers. Clients that read removed content receive all of it. A blob that is being
    fetched (`being_fetched`) is stored nevertheless, since clients wait for it. What another command stores or exports
    (`held`) stays.

    In a fleet, tags and content are also removed from the bucket; other nodes keep what they have stored.

    Content that another tag, a pinned image or another stored manifest refers to stays. Raises `StorageError`.
    """

    def __init__(self, parts: Parts, fleet: FleetCommands) -> None:
        self._parts = parts
        self._fleet = fleet
        self._store = parts.store

    async def image(self, name: ImageName, *, force: bool = False) -> dict[str, Any]:
        """Forget a tag and remove its content; a name with a digest removes that content.

        Raises `NotKnown`, and `Refused` for a pinned image unless `force`. The pin stays: it is about the name.
        """
        store = self._store
        only = name.reference if isinstance(name.reference, Digest) else None
        roots = store.tags.digests(name)
        if only is not None:
            link = store.links.get(name.host, name.repository, only)
            roots = roots if link is not None and store.has(only) else frozenset()
        if not roots:
            raise NotKnown(f"{name} is not stored")
        is_pinned = name in tuple(store.pins) or (only is not None and only in self._pinned(None))
        if is_pinned and not force:
            raise Refused(f"{name} is pinned; unpin it first, or purge it with force")
        return await self._purge(str(name), Target(name, roots, only, self._pinned(name)))

    async def content(self, digest: Digest, *, force: bool = False) -> dict[str, Any]:
        """Remove content from all repositories; of a manifest also what nothing else refers to.

        Raises `NotKnown`, and `Refused` for the content of a pinned image unless `force`.
        """
        if not self._store.has(digest):
            raise NotKnown(f"{digest} is not stored")
        if digest in self._pinned(None) and not force:
            raise Refused(f"{digest} belongs to a pinned image; unpin that first, or purge it with force")
        return await self._purge(str(digest), Target(None, frozenset({digest}), digest, self._pinned(None)))

    def _pinned(self, name: ImageName | None) -> frozenset[Digest]:
        """Return the content of the pinned images except this one."""
        pins = [pin for pin in self._store.pins if pin != name]
        return pinned_content(pins, self._store.tags, self._store.usage)

    async def _purge(self, what: str, target: Target) -> dict[str, Any]:
        usage = self._store.usage
        content = usage.closure(target.roots)
        stored = Stored(self._store.index.opened(), set(usage.sizes), dict(usage.children))
        plan = await asyncio.to_thread(plan_purge, stored, target)
        for name in plan.tags:
            await self._parts.validation.forget(name.host, name.repository, str(name.reference))
        for registry, repository, subject in plan.subjects:
            await self._parts.writer.drop_referrers(registry, repository, Digest(subject))
        done = await self._remove(plan)
        if target.name is not None:
            await self._store.links.drop_all(target.name.host, target.name.repository, done.removed)
        is_out_of_bucket = await self._fleet.purge(plan.tags, target.name, done.removed)
        await self._store.private.forget(done.removed)
        self._store.update_pinned()
        return {
            "purged": what,
            "tags": [str(name) for name in plan.tags],
            "removed": done.removed,
            "bytes": done.size,
            "removed_from_bucket": is_out_of_bucket,
            "kept": plan.used,
            "held": done.held,
            "being_read": done.read,
            "being_fetched": [fill.digest for fill in self._parts.fills.progress() if fill.digest in content],
        }

    async def _remove(self, plan: Plan) -> _Removal:
        """Remove content that is not held; return what was done."""
        done = _Removal()
        for digest in plan.removed:
            usage = self._store.usage
            if digest in usage.held:
                done.held.append(digest)
                continue
            if digest in usage.in_use:
                done.read.append(digest)
            size = usage.sizes.get(digest, 0)
            if await self._store.capacity.purge(digest, self._store.remove):
                done.removed.append(digest)
                done.size += size
        return done
