"""Opens stored blobs for reading, verified where that is needed."""

import contextlib
import os
from pathlib import Path

from ..oci.digest import Digest
from ..oci.errors import ContentDamaged, StorageError
from .inspector import Inspector
from .stored_blob import DAMAGE, StoredBlob, open_regular
from .usage import Usage


async def open_verified(path: Path, digest: Digest, size: int, usage: Usage, inspector: Inspector) -> StoredBlob:
    """Open a blob's file; raises `ContentDamaged` when it is not as it was stored, and `StorageError` when it cannot be
    opened for another reason."""
    with contextlib.ExitStack() as opened:
        try:
            fd = open_regular(path)
            opened.callback(os.close, fd)
            usage.begin_reading(digest)
            opened.callback(usage.end_reading, digest)
            await inspector.check(fd, path, digest, size)
        except FileNotFoundError as error:
            raise ContentDamaged("is missing") from error
        except OSError as error:
            if error.errno in DAMAGE:
                raise ContentDamaged(f"cannot be opened: {error.strerror}") from error
            # For example too many open files, which does not mean that the blob is damaged.
            raise StorageError(f"cannot open a stored blob: {error.strerror or error}") from error
        opened.pop_all()
    return StoredBlob(fd, size, path, lambda: usage.end_reading(digest), lambda: inspector.require_check(digest))
