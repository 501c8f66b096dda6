"""Fills a store with many small blobs, as years of pulls would: `python filler.py STORE COUNT`, hubcache on the path.

By the index alone and in one transaction; through the proxy it would take an hour.
"""

import sys
from pathlib import Path

from hubcache.decide.records import encode_row
from hubcache.oci.digest import Digest
from hubcache.store.disk import StagedFile
from hubcache.store.index import Index
from hubcache.store.usage import on_disk


def main(directory: Path, count: int) -> None:
    """Make the store in `directory`, or add to it."""
    index = Index(directory / "store")
    rows: dict[str, object] = {}
    for number in range(count):
        body = f"blob {number}".encode()
        digest = Digest.of(body)
        path = directory / f"staged-{number}"
        path.write_bytes(body)
        rows[f"blob/{digest}"] = StagedFile(path, digest, len(body))
        rows[f"retention/{digest}"] = encode_row((on_disk(len(body)), 1.0, 0.0, 1.0, True))
    index.set_many(rows)
    index.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
