"""Reads and stores content by digest, for exports and imports."""

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping

from ..decide.records import ManifestRecord
from ..oci.digest import Digest, Verifier
from ..oci.errors import BadUpstream, NotStored
from ..oci.manifest import parse_manifest
from ..oci.media import media_type_of
from ..store.stored_blob import StoredBlob
from ..store.usage import size_on_disk
from .errors import InvalidCommand, NotKnown
from .held_content import HeldContent
from .parts import Parts

HOLD_SECONDS = 300.0
"""How long content stays held after the last request of an import, which records its images, or of an export."""

_INLINE_BYTES = 64 << 10
"""Pieces up to this size are hashed and written in the event loop; to pass them to a thread costs more."""


class ContentCommands:
    """Reads and stores content. What an import stores and an export reads is held until `HOLD_SECONDS` after the last
    request."""

    def __init__(self, parts: Parts) -> None:
        self._store = parts.store
        self._held = HeldContent(parts.store)
        self._uploads = 0
        self._end: asyncio.TimerHandle | None = None

    # -- reading --------------------------------------------------------------------------------------------------

    def manifest(self, digest: Digest) -> ManifestRecord | None:
        """Return a stored manifest, which is verified; None for a blob and for content that is not stored."""
        record = self._store.manifest(digest)
        return None if record is None else ManifestRecord(media_type_of(record.body) or record.media_type, record.body)

    async def open_blob(self, digest: Digest) -> StoredBlob:
        """Return an open blob whose file has just been verified; raises `NotKnown`."""
        if self._end is not None:  # another part of the same export follows
            self._restart_timer()
        self._store.inspector.require_check(digest)
        found = await self._store.open_blob(digest)
        if found is None:
            self._store.inspector.clear(digest)
            raise NotKnown(f"{digest} is not stored; if it was damaged, it is in the quarantine now")
        return found

    def keep(self, digests: Iterable[Digest]) -> None:
        """Hold stored content while it is exported."""
        self._held.keep(*digests)
        self._restart_timer()

    # -- storing --------------------------------------------------------------------------------------------------

    def expect(self, contents: Mapping[Digest, int]) -> list[Digest]:
        """Hold the content of an import (sizes in bytes by digest), and return what is not stored and must be sent.

        Raises `NotStored` when it does not fit into the store.
        """
        missing = [digest for digest in contents if not self._store.has(digest)]
        limit = self._store.capacity.max_blob
        for digest in missing:
            if limit and contents[digest] > limit:
                raise NotStored(f"{digest} has {contents[digest]} bytes, which is more than hubcache_max_blob allows")
        needed = sum(size_on_disk(contents[digest]) for digest in missing)
        new = self._held.add(*contents)
        self._restart_timer()
        available = self._store.capacity.available(self._store.index.opened().bytes)
        if needed > available:
            self._held.release(new)
            raise NotStored(
                f"the content needs {needed} bytes, and {available} bytes are neither pinned nor in use; see "
                "hubcache_size"
            )
        return missing

    async def put_manifest(self, digest: Digest, media_type: str, body: bytes) -> None:
        """Store a manifest; raises `InvalidCommand` for other bytes, `ManifestInvalid`, and `StorageError`."""
        if not digest.matches(body):
            raise InvalidCommand(f"the content does not match its digest {digest}")
        parse_manifest(body)
        self._held.add(digest)
        self._restart_timer()
        await self._store.put_manifest(digest, ManifestRecord(media_type_of(body) or media_type, body))

    async def put_blob(self, digest: Digest, size: int, pieces: AsyncIterable[bytes]) -> None:
        """Store a blob of `size` bytes once all of it has arrived and is verified; raises as `put_manifest` does."""
        self._held.add(digest)
        self._uploads += 1
        try:
            await self._receive(digest, size, pieces)
        except BadUpstream as error:
            raise InvalidCommand(
                f"the content does not match its digest {digest}, or its size of {size} bytes"
            ) from error
        finally:
            self._uploads -= 1
            self._restart_timer()

    async def _receive(self, digest: Digest, size: int, pieces: AsyncIterable[bytes]) -> None:
        verifier = Verifier(digest, size)
        staged = await self._store.stage(digest, size)

        def write(data: bytes) -> None:
            verifier.update(data)
            staged.write(data)

        try:
            async for data in pieces:
                if len(data) <= _INLINE_BYTES:
                    write(data)
                else:
                    await asyncio.to_thread(write, data)
            verifier.finish()
            await self._store.commit(staged)
        finally:
            self._store.finish(staged)

    # -- holding --------------------------------------------------------------------------------------------------

    def _restart_timer(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._release)

    def _release(self) -> None:
        if self._uploads:
            self._restart_timer()
        else:
            self.close()

    def close(self) -> None:
        """Stop holding content."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        self._held.release()
