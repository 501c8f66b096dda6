"""A range of a blob that its fill has not reached yet: from the fill, or fetched on its own beside it."""

import asyncio

from ..oci.errors import RegistryError
from .sources import CHUNK, FillSource, ReadInto, Source, UpstreamSource


class ParallelRange(Source):
    """Whichever comes first: the fill, or the answer for one of the few ranges that are fetched beside it.

    Places are given in the order in which they were asked for; who leaves gives up its turn, or its place. A range
    that the upstream refuses to give on its own comes from the fill.
    """

    def __init__(self, following: FillSource, alone: UpstreamSource, patience: float) -> None:
        """`following` and `alone` give the same range, and are owned by this; for `patience` seconds, and as long again
        where other ranges fill the gap, only the fill is waited for."""
        self.origin = following.origin
        self._following = following
        self._alone = alone
        self._patience = patience
        self._chosen: Source | None = None
        self._has_place = False

    async def choose_source(self) -> Source:
        """Wait until it is known where the bytes come from; the source remains this one's to close."""
        if self._chosen is None:
            self._chosen = self._alone if await self._opens_first() else self._following
            self.origin = self._chosen.origin
        return self._chosen

    async def _opens_first(self) -> bool:
        """Whether the range was opened on its own before the fill came to it, or failed."""
        reached = asyncio.ensure_future(self._following.fill.wait_readable(self._following.at + 1))
        opened = asyncio.ensure_future(self._open_alone())
        is_first = False
        try:
            await asyncio.wait((reached, opened), return_when=asyncio.FIRST_COMPLETED)
            is_first = opened.done() and not reached.done() and opened.result()
        finally:
            reached.cancel()
            opened.cancel()
            await asyncio.gather(reached, opened, return_exceptions=True)
            if not is_first:
                await self._alone.close()
                self._give_back()
        return is_first

    async def _open_alone(self) -> bool:
        """Wait for a place, and ask the upstream; False where it refuses."""
        fill, at = self._following.fill, self._following.at
        while self._patience:
            await asyncio.sleep(self._patience)
            if not fill.is_asked_for_until(at):
                break
        await fill.places.acquire()
        self._has_place = True
        try:
            await self._alone.open()
        except RegistryError:
            return False
        return True

    def _give_back(self) -> None:
        if self._has_place:
            self._has_place = False
            self._following.fill.places.release()

    async def read(self, most: int = CHUNK) -> bytes:
        source = await self.choose_source()
        return await source.read(most)

    async def file_reader(self) -> ReadInto | None:
        source = await self.choose_source()
        return await source.file_reader()

    @property
    def finished(self) -> bool:
        return self._chosen is not None and self._chosen.finished

    async def close(self) -> None:
        try:
            await self._alone.close()
        finally:
            self._give_back()
            await self._following.close()
