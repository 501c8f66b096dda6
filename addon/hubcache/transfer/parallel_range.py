"""A range of a blob that its fill has not reached yet: read from the fill, or fetched in parallel to it."""

import asyncio

from ..oci.errors import RegistryError
from .file_part import FilePart
from .sources import CHUNK, FillSource, Source, UpstreamSource


class ParallelRange(Source):
    """A source that reads from the fill or from a separate request for the range, whichever is ready first.

    Few ranges are fetched in parallel to one fill; the others wait for a slot in the order of their requests. A range
    that is closed gives up its slot, or its place in the queue. A range that the upstream refuses is read from the
    fill.
    """

    def __init__(self, following: FillSource, separate: UpstreamSource, patience: float) -> None:
        """`following` and `separate` read the same range, and are owned by this source.

        The separate request is sent only after `patience` seconds without the fill reaching the range, and after as
        long again while other ranges cover the gap.
        """
        self.origin = following.origin
        self._following = following
        self._separate = separate
        self._patience = patience
        self._chosen: Source | None = None
        self._has_slot = False

    async def choose_source(self) -> Source:
        """Wait until it is known where the bytes come from, and return that source, which this one closes."""
        if self._chosen is None:
            self._chosen = self._separate if await self._separate_opens_first() else self._following
            self.origin = self._chosen.origin
        return self._chosen

    async def _separate_opens_first(self) -> bool:
        """Whether the separate request was answered before the fill reached the range, or failed."""
        reached = asyncio.ensure_future(self._following.fill.wait_readable(self._following.at + 1))
        opened = asyncio.ensure_future(self._open_separate())
        is_first = False
        try:
            await asyncio.wait((reached, opened), return_when=asyncio.FIRST_COMPLETED)
            is_first = opened.done() and not reached.done() and opened.result()
        finally:
            reached.cancel()
            opened.cancel()
            await asyncio.gather(reached, opened, return_exceptions=True)
            if not is_first:
                await self._separate.close()
                self._release_slot()
        return is_first

    async def _open_separate(self) -> bool:
        """Wait for a slot and request the range; returns False if the upstream refuses, or the fill was faster."""
        fill, at = self._following.fill, self._following.at
        while self._patience:
            await asyncio.sleep(self._patience)
            if not fill.is_requested_until(at):
                break
        await fill.range_slots.acquire()
        self._has_slot = True
        if fill.readable > at:  # the fill reached this range while another one gave up its slot
            return False
        try:
            await self._separate.open()
        except RegistryError:
            return False
        return True

    def _release_slot(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._following.fill.range_slots.release()

    async def read(self, most: int = CHUNK) -> bytes:
        source = await self.choose_source()
        return await source.read(most)

    async def file_part(self) -> FilePart | None:
        source = await self.choose_source()
        return await source.file_part()

    @property
    def finished(self) -> bool:
        return self._chosen is not None and self._chosen.finished

    async def close(self) -> None:
        try:
            await self._separate.close()
        finally:
            self._release_slot()
            await self._following.close()
