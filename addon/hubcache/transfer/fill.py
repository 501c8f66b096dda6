"""Fills: one fetch per digest, however many ask. Stage, hash, verify, then commit or cancel.

A fill runs on when its clients leave. Readers see its bytes as soon as they are on the staged file, except the last
one: that is held back until the digest is verified, so that no client ever receives a wrong body as a complete one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager

from ..oci.digest import Digest, Verifier
from ..oci.errors import BadUpstream, HubcacheError, RegistryError, StorageError, Unavailable
from ..store.staging import Staged
from ..store.store import Store
from .observer import Observer
from .upstream import BlobBody

type OpenBlob = Callable[[int], AbstractAsyncContextManager[BlobBody]]
"""Opens the blob upstream from the given byte."""

_ATTEMPTS_TO_OPEN = 3
_ATTEMPTS_WITHOUT_PROGRESS = 5
_PROGRESS_BYTES = 1 << 20
"""An attempt that brought this much more is no failure. Any byte would not do: a gigabyte from an upstream that breaks
off after each packet would become a million requests."""
_BACKOFF_SECONDS = 0.2
_INLINE_BYTES = 64 << 10
"""Batches up to this are hashed on the loop; a hop to the worker thread costs more than hashing them."""


class Fill:
    """One blob on its way in. `size` is known once `opened` returns; `error` is set when the fill failed."""

    def __init__(self, digest: Digest, origin: str = "") -> None:
        self.digest = digest
        self.origin = origin
        """Registry that it comes from: which has no say in who may read what another gives."""
        self.size: int | None = None
        self.error: HubcacheError | None = None
        self.staged: Staged | None = None
        self.verified = False
        self.stored = False
        self._written = 0
        self._changed = asyncio.Event()
        self._readers: set[tuple[int, asyncio.Future[None]]] = set()

    @property
    def readable(self) -> int:
        """Bytes that readers may have."""
        if self.verified or self.size is None:
            return self._written
        return min(self._written, max(0, self.size - 1))

    async def opened(self) -> int:
        """Wait until the upstream promised a size; returns it, or raises what prevented it."""
        while self.size is None:
            self.raise_error()
            await self._changed.wait()
        return self.size

    async def wait_readable(self, count: int, patience: float | None = None) -> None:
        """Wait until `count` bytes are readable, but not longer than `patience` (seconds); raises the fill's error
        when they never will be."""
        deadline = None if patience is None else asyncio.get_running_loop().time() + patience
        while self.readable < count and (deadline is None or asyncio.get_running_loop().time() < deadline):
            self.raise_error()
            await self._until(count, deadline)

    async def _until(self, count: int, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        reader = (count, woken)
        self._readers.add(reader)
        timer = None if deadline is None else loop.call_at(deadline, _wake, woken)
        try:
            await woken
        finally:
            self._readers.discard(reader)
            if timer is not None:
                timer.cancel()

    async def ended(self) -> None:
        """Wait until the blob is in the store; raises the fill's error."""
        while not self.stored:
            self.raise_error()
            await self._changed.wait()

    def raise_error(self) -> None:
        """Raise what ended the fill, if it failed."""
        if self.error is not None:
            raise self.error

    def advance(self, written: int) -> None:
        """More bytes are on the file; wakes only those who wait for them, for there may be many readers."""
        self._written = written
        for count, woken in self._readers:
            if count <= self.readable:
                _wake(woken)

    def notify(self) -> None:
        """Wake all who wait; each looks for itself."""
        self._changed.set()
        self._changed = asyncio.Event()
        for _, woken in self._readers:
            _wake(woken)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Fills:
    """All fills of this process; `failed` is told why content could not be stored."""

    def __init__(self, store: Store, observer: Observer, failed: Callable[[StorageError], None]) -> None:
        self._store = store
        self._observer = observer
        self._failed = failed
        self._running: dict[Digest, Fill] = {}
        self._tasks: dict[asyncio.Task[None], Fill] = {}
        self._hashing = ThreadPoolExecutor(2, thread_name_prefix="fill")

    def get(self, digest: Digest) -> Fill | None:
        """The running fill of a digest."""
        return self._running.get(digest)

    def start(
        self,
        digest: Digest,
        size: int | None,
        open_blob: OpenBlob,
        origin: str = "",
        verified: Callable[[], Awaitable[None]] | None = None,
    ) -> Fill:
        """The running fill of a digest, or a new one. `size` is what a manifest says it must be; `verified` is told
        when the bytes are right, before they are in the store."""
        fill = self._running.get(digest)
        if fill is None:
            fill = self._running[digest] = Fill(digest, origin)
            self._observer.fills_changed(len(self._running))
            task = asyncio.create_task(self._run(fill, size, open_blob, verified))
            self._tasks[task] = fill
            task.add_done_callback(lambda done: self._tasks.pop(done))
        return fill

    async def close(self) -> None:
        """Cancel what is still arriving, and its staged files; what is verified is committed."""
        for task, fill in self._tasks.items():
            if not fill.verified:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._hashing.shutdown()

    async def _run(
        self, fill: Fill, size: int | None, open_blob: OpenBlob, verified: Callable[[], Awaitable[None]] | None
    ) -> None:
        try:
            if size is not None:  # no connection for what will not be stored
                fill.staged = await self._store.stage(fill.digest, size)
            await self._fetch(fill, size, open_blob)
            if verified is not None:
                await verified()
            assert fill.staged is not None
            await self._store.commit(fill.staged)
            fill.stored = True
        except (RegistryError, StorageError) as error:
            fill.error = error
            if isinstance(error, StorageError):
                self._failed(error)
        except asyncio.CancelledError:
            fill.error = Unavailable("the cache is shutting down")
            raise
        finally:
            if not fill.stored and fill.error is None:  # a defect of this program: its readers would wait for ever
                fill.error = Unavailable("internal error")
            del self._running[fill.digest]
            try:
                if fill.staged is not None:
                    self._store.finish(fill.staged)
            except StorageError as error:
                self._failed(error)
            fill.notify()
            self._observer.fills_changed(len(self._running))
            self._observer.fill_ended(fill.digest, fill.error)

    async def _fetch(self, fill: Fill, size: int | None, open_blob: OpenBlob) -> None:
        """Until the whole blob is on the staged file and verified; a broken transfer is resumed where it broke."""
        verifier = Verifier(fill.digest, size)
        failures = mark = 0
        while True:
            try:
                async with open_blob(verifier.received) as body:
                    await self._accept_size(fill, verifier, body)
                    await self._absorb(fill, verifier, body)
                if verifier.size is not None and verifier.received < verifier.size:
                    raise Unavailable("upstream ended the transfer early")
                break
            except Unavailable:
                if verifier.received >= mark + _PROGRESS_BYTES:
                    failures, mark = 0, verifier.received
                failures += 1
                if failures >= (_ATTEMPTS_WITHOUT_PROGRESS if fill.size is not None else _ATTEMPTS_TO_OPEN):
                    raise
                await asyncio.sleep(_BACKOFF_SECONDS * 2 ** (failures - 1))
        verifier.finish()
        if fill.size is None:
            fill.size = verifier.received
        fill.verified = True
        fill.advance(verifier.received)
        fill.notify()

    async def _accept_size(self, fill: Fill, verifier: Verifier, body: BlobBody) -> None:
        """Agree on the size with what the upstream promises now, and on the first time reserve the room."""
        if verifier.size is None:
            verifier.size = body.size
        elif body.size is not None and body.size != verifier.size:
            raise BadUpstream(
                "upstream promises another size than the manifest says",
                {"digest": str(fill.digest), "expected": verifier.size, "got": body.size},
            )
        if fill.staged is None:
            fill.staged = await self._store.stage(fill.digest, verifier.size or 0)
        if fill.size is None and verifier.size is not None and fill.staged.reserved >= verifier.size:
            fill.size = verifier.size
            fill.notify()

    async def _absorb(self, fill: Fill, verifier: Verifier, body: BlobBody) -> None:
        staged = fill.staged
        assert staged is not None
        skip = verifier.received - body.start  # the upstream may have ignored our Range and begun at 0
        loop = asyncio.get_running_loop()

        def take(data: bytes) -> None:
            verifier.update(data)
            staged.write(data)

        async for chunk in body.chunks():
            data = chunk[skip:] if skip else chunk
            skip = max(0, skip - len(chunk))
            if fill.size is None:
                await self._store.extend(staged, verifier.received + len(data))
            if len(data) <= _INLINE_BYTES:
                take(data)
            else:
                await loop.run_in_executor(self._hashing, take, data)
            fill.advance(staged.written)
