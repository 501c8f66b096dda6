"""Fills a store with many small blobs: `python fill_store.py STORE COUNT`, with hubcache on the Python path.

It writes to the index in one transaction. Pulling as many blobs through the proxy would take an hour.
"""

import sys
from pathlib import Path

from hubcache.decide.retention_rows import encode_row
from hubcache.oci.digest import Digest
from hubcache.store.disk import StagedFile
from hubcache.store.index import Index
from hubcache.store.usage import size_on_disk


def main(directory: Path, count: int) -> None:
    """Create the store in `directory`, or add to it."""
    index = Index(directory / "store")
    rows: dict[str, object] = {}
    for number in range(count):
        body = f"blob {number}".encode()
        digest = Digest.of(body)
        path = directory / f"staged-{number}"
        path.write_bytes(body)
        rows[f"blob/{digest}"] = StagedFile(path, digest, len(body))
        rows[f"retention/{digest}"] = encode_row((size_on_disk(len(body)), 1.0, 0.0, 1.0, True))
    index.set_many(rows)
    index.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
