"""Verifies all stored content, and repairs what is damaged or missing."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..oci.digest import Digest
from ..store.content_check import State, verify_content
from ..store.listing import list_damaged, list_repositories
from .errors import Refused
from .parts import Parts
from .repair import NotRepairable, Repair

SPEED = 256 << 20
"""Highest average speed in bytes per second. Hashing takes a part of one processor core then; files are read in pieces
of a megabyte, one after the other, so that reads for clients come in between."""

REPAIRED, NOT_REPAIRABLE = "repaired", "not repairable"
_STATES = (State.GOOD, State.DAMAGED, State.MISSING, REPAIRED, NOT_REPAIRABLE)

type Event = dict[str, Any]


class Verify:
    """Verifies all content once. One verification runs at a time."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._repair = Repair(parts)
        self._is_running = False

    async def run(self, *, repair: bool) -> AsyncGenerator[Event]:
        """Verify the content, yield an event with a `state` for each object, and at the end the counts of all states.

        Damaged content is removed from the store. With `repair` it is fetched again after all content was verified, and
        so is what was found damaged earlier and was not fetched since; its `state` is reported then, and before that
        only what was `found`. Raises `Refused` while another verification runs, and `StorageError`.
        """
        if self._is_running:
            raise Refused("another verification is running")
        self._is_running = True
        thread = ThreadPoolExecutor(1, thread_name_prefix="verify")
        try:
            async for event in self._run(thread, repair):
                yield event
        finally:
            self._is_running = False
            thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, thread: ThreadPoolExecutor, repair: bool) -> AsyncGenerator[Event]:
        counts, damaged = Counter[str](), dict[Digest, Event]()
        begun, read = time.monotonic(), 0

        def pause(count: int) -> float:
            nonlocal read
            read += count
            return max(0.0, begun + read / SPEED - time.monotonic())

        sizes = dict(self._store.usage.sizes)
        yield {"begin": True, "objects": len(sizes), "bytes": sum(sizes.values())}
        for digest, size in sizes.items():
            is_manifest = self._store.is_manifest(digest)
            finding = await verify_content(self._store, digest, thread, pause)
            event: Event = {"digest": digest, "size": size}
            if finding.state in (State.DAMAGED, State.MISSING):
                damaged[digest] = event | {"is_manifest": is_manifest}
                event["error"] = finding.why
            if repair and digest in damaged:
                yield event | {"found": finding.state}
            elif finding.state is not State.REMOVED:
                counts[finding.state] += 1
                yield event | {"state": finding.state}
            await asyncio.sleep(pause(0))
        if repair:
            async for event in self._repair_all(damaged):
                counts[event["state"]] += 1
                yield event
        totals = {state.replace(" ", "_"): counts[state] for state in _STATES}
        yield {"done": True, "objects": counts.total(), "bytes": read, "seconds": time.monotonic() - begun} | totals

    async def _repair_all(self, damaged: Mapping[Digest, Event]) -> AsyncGenerator[Event]:
        """Fetch content again, and yield an event for each."""
        index = self._store.index.opened()
        known = await asyncio.to_thread(list_damaged, index)
        wanted = {digest: is_manifest for digest, is_manifest in known.items() if not self._store.has(digest)}
        wanted |= {digest: event["is_manifest"] for digest, event in damaged.items()}
        repositories = await asyncio.to_thread(list_repositories, index, wanted)
        settled = [digest for digest in known if digest not in wanted]
        for digest, is_manifest in wanted.items():
            event: Event = {"digest": digest, "size": damaged[digest]["size"] if digest in damaged else 0}
            try:
                await self._repair.fetch(digest, repositories.get(digest, {}), is_manifest=is_manifest)
            except NotRepairable as error:
                settled += [digest] if error.is_final else []
                yield event | {"state": NOT_REPAIRABLE, "error": str(error)}
            else:
                settled.append(digest)
                yield event | {"state": REPAIRED}
        await self._store.damage.forget(settled)
