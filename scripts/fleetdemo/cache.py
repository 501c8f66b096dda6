"""A cache of the fleet."""

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .ports import Ports
from .process import Process
from .seaweedfs import BUCKET, read

PROXY_PORT, MIRROR_PORT, PEER_PORT, STATUS_PORT = 8081, 5001, 5101, 9181
"""Ports of the first cache, where they are free; the others use those above."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Ports of 127.0.0.1 and the directory of a cache; its store is in that directory."""

    number: int
    directory: Path
    proxy: int
    mirror: int
    peers: int
    status: int

    @property
    def name(self) -> str:
        """What its lines in the terminal begin with."""
        return f"cache {self.number}"

    @property
    def store(self) -> Path:
        return self.directory / "store"

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs the cache with the user's arguments; those of the fleet have precedence."""
        settings = {
            "hubcache_bucket": f"s3://{BUCKET}/fleet",
            "hubcache_peer_listen": f"127.0.0.1:{self.peers}",
            "hubcache_peer_address": f"127.0.0.1:{self.peers}",
            "hubcache_status": f"127.0.0.1:{self.status}",
        }
        ports = ["--proxy-port", str(self.proxy), "--mirror-port", str(self.mirror)]
        command = [sys.executable, "-m", "hubcache.cli", "serve", *ports, "--dir", str(self.store)]
        command += ["--set", "listen_host=127.0.0.1", *arguments]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        return command

    async def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], show: Callable[[str], None]
    ) -> Process:
        """Start the cache without waiting for it; `show` receives the lines that it logs."""
        self.directory.mkdir()
        return await Process.start(self.name, self.command(arguments), environment, show)

    async def serves(self) -> bool:
        """Whether the cache answers requests."""
        try:
            return bool(await asyncio.to_thread(read, f"http://127.0.0.1:{self.status}/healthz"))
        except OSError:
            return False


def place(number: int, directory: Path, ports: Ports) -> Cache:
    """Return a cache that has not been started, with free ports."""
    first = (PROXY_PORT, MIRROR_PORT, PEER_PORT, STATUS_PORT)
    return Cache(number, directory / f"cache{number}", *(ports.from_(port) for port in first))
