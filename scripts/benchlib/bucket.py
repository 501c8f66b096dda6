"""The bucket of the fleet that is measured, in SeaweedFS."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
from fleetdemo.seaweedfs import BUCKET
from obstore.store import S3Store

from .images import Content
from .processes import BenchError, running

_PREFIX = "bench"
_STORED_SECONDS = 60
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket: `variables` of the environment give its endpoint and the credentials to a client."""

    variables: Mapping[str, str]

    @property
    def url(self) -> str:
        """The value of `hubcache_bucket`."""
        return f"s3://{BUCKET}/{_PREFIX}"

    def wait_until_stored(self, blob: Content) -> None:
        """Return when the fleet has stored a blob in the bucket. Raises `BenchError` if that takes too long."""
        store, deadline = self._open(), time.monotonic() + _STORED_SECONDS
        while True:
            try:
                obstore.head(store, _key(blob))
            except FileNotFoundError:
                if time.monotonic() > deadline:
                    raise BenchError(f"the blob is not in the bucket after {_STORED_SECONDS} seconds") from None
                time.sleep(0.1)
            else:
                return

    def read(self, blob: Content) -> float:
        """Read a blob with obstore alone, and return the duration in seconds."""
        store, size = self._open(), 0
        obstore.head(store, _key(blob))  # opens the connection
        began = time.monotonic()
        for chunk in obstore.get(store, _key(blob)).stream(min_chunk_size=_CHUNK):
            size += len(chunk)
        seconds = time.monotonic() - began
        if size != blob.size:
            raise BenchError(f"the bucket has {size} bytes of a blob of {blob.size}")
        return seconds

    def _open(self) -> S3Store:
        return S3Store(
            BUCKET,
            prefix=_PREFIX,
            endpoint=self.variables["AWS_ENDPOINT_URL"],
            access_key_id=self.variables["AWS_ACCESS_KEY_ID"],
            secret_access_key=self.variables["AWS_SECRET_ACCESS_KEY"],
            region=self.variables["AWS_REGION"],
            client_options={"allow_http": True, "proxy_excludes": "127.0.0.1"},
        )


@contextmanager
def running_bucket(directory: Path) -> Iterator[Bucket]:
    """Run SeaweedFS during the block, with its files in `directory`."""
    directory.mkdir(parents=True)
    found = directory / "variables.json"
    modules = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "benchlib.run_seaweedfs", directory / "seaweedfs", found]
    with running(command, directory, found.exists, modules, seconds=60):
        yield Bucket(json.loads(found.read_text()))


def _key(blob: Content) -> str:
    """Return the key of a public blob (`hubcache.fleet.keys`)."""
    algorithm, _, value = blob.paths[0].rpartition("/")[2].partition(":")
    return f"blob/{algorithm}/{value[:2]}/{value}"
