"""The bucket of the fleet that is measured, in SeaweedFS."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import obstore
from fleetdemo.seaweedfs import BUCKET
from obstore.exceptions import BaseError
from obstore.store import S3Store

from .images import Content
from .processes import BenchError, running

_PREFIX = "bench"
_LEASES = "lease/blob"
"""The leases of blobs, as `hubcache.fleet.keys` names them."""

_STORED_SECONDS = 60
_CHUNK = 512 << 10
"""As a node receives it. obstore alone takes 1.2 s/GB with these chunks, and 1.3 with 1 MiB."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket: `variables` of the environment give its endpoint and the credentials to a client. `pid` is the process
    that runs SeaweedFS."""

    variables: Mapping[str, str]
    pid: int

    @property
    def url(self) -> str:
        """The value of `hubcache_bucket`."""
        return f"s3://{BUCKET}/{_PREFIX}"

    def wait_until_stored(self, blob: Content) -> None:
        """Return when the fleet has stored a blob in the bucket. Raises `BenchError` if that takes too long."""
        store, deadline = self.open(), time.monotonic() + _STORED_SECONDS
        while not _has(store, key(blob)):
            if time.monotonic() > deadline:
                raise BenchError(f"the blob is not in the bucket after {_STORED_SECONDS} seconds")
            time.sleep(0.1)

    def read(self, blob: Content) -> float:
        """Read a blob with obstore alone, and return the duration in seconds. Raises `BenchError`."""
        store, size = self.open(), 0
        if not _has(store, key(blob)):  # this also opens the connection
            raise BenchError("the blob is not in the bucket")
        began = time.monotonic()
        try:
            for chunk in obstore.get(store, key(blob)).stream(min_chunk_size=_CHUNK):
                size += len(chunk)
        except BaseError as error:
            raise BenchError(f"the bucket cannot be read: {error}") from error
        seconds = time.monotonic() - began
        if size != blob.size:
            raise BenchError(f"the bucket has {size} bytes of a blob of {blob.size}")
        return seconds

    def leased_blobs(self) -> dict[str, set[str]]:
        """Return the digests of the blobs that each node fetches, or has fetched and not uploaded yet: those that have
        leases, and are not in the bucket. The keys are the URLs of the nodes for other nodes. Raises `BenchError` if
        the bucket cannot be read."""
        store = self.open()
        found: dict[str, set[str]] = {}
        try:
            for entries in obstore.list(store, prefix=_LEASES):
                for entry in entries:
                    with suppress(FileNotFoundError):  # released meanwhile
                        lease = json.loads(bytes(obstore.get(store, entry["path"]).bytes()))
                        digest = entry["path"].rpartition("/")[2]
                        if not _has(store, _key(digest)):
                            found.setdefault(lease["address"], set()).add(digest)
        except BaseError as error:
            raise BenchError(f"the bucket cannot be read: {error}") from error
        return found

    def open(self) -> S3Store:
        """Return a client for the objects of the fleet."""
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
    with running(command, directory, found.exists, modules, seconds=60) as pid:
        yield Bucket(json.loads(found.read_text()), pid)


def _has(store: S3Store, name: str) -> bool:
    try:
        obstore.head(store, name)
    except FileNotFoundError:
        return False
    except BaseError as error:
        raise BenchError(f"the bucket cannot be read: {error}") from error
    return True


def key(blob: Content) -> str:
    """Return the key of a public blob, as `hubcache.fleet.keys` makes it."""
    return _key(blob.paths[0].rpartition("/")[2])


def _key(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blob/{algorithm}/{value[:2]}/{value}"
