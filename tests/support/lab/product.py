"""The product as users run it: mitmdump with the addon, in a process of its own."""

import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from hubcache.operate.ca import ensure_ca

from support.paths import REPOSITORY
from support.ports import free_port
from support.processes import Daemon, accepts

TAG_TTL = 600
"""Seconds; longer than a test, so that a warm pull has no reason to ask upstream."""


class Cache:
    """A cache with its own store and CA below *room*, in front of the Hub at *upstream*. Ports outlive restarts."""

    def __init__(self, room: Path, upstream: str, **options: str) -> None:
        self.proxy, self.mirror, self.status = free_port(), free_port(), free_port()
        self.store, self.confdir = room / "store", room / "ca"
        # mitmproxy makes a CA for every site where it finds none; what users have without `confdir` is this one.
        ensure_ca(self.confdir, ["registry-1.docker.io", "auth.docker.io"], datetime.now(UTC))
        settings = {
            "hubcache_dir": str(self.store),
            "hubcache_registries": f"registry-1.docker.io={upstream}",
            "hubcache_status": f"127.0.0.1:{self.status}",
            "hubcache_tag_ttl": str(TAG_TTL),
            "confdir": str(self.confdir),
            "listen_host": "127.0.0.1",
            **options,
        }
        command: list[str | Path] = [Path(sys.executable).with_name("mitmdump"), "-s", REPOSITORY / "addon/cache.py"]
        command += ["--mode", f"regular@{self.proxy}"]
        command += ["--mode", f"reverse:https://registry-1.docker.io@{self.mirror}"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        self.daemon = Daemon(command, room / "cache.log", {"PYTHONDONTWRITEBYTECODE": "1"})

    def start(self) -> None:
        """Start it, or start it again, and wait until it is healthy."""
        self.daemon.start(self._healthy)

    def stop(self) -> None:
        self.daemon.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would be."""
        self.daemon.kill()

    def _healthy(self) -> bool:
        return all(map(accepts, (self.status, self.proxy, self.mirror))) and self._get("/healthz")[0] == 200

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.status}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    def metrics(self) -> str:
        """The text of /metrics."""
        return self._get("/metrics")[1]

    @property
    def ca_directory(self) -> Path:
        """A directory that holds the CA's certificate and nothing else, for SSL_CERT_DIR."""
        directory = self.confdir.with_name("trusted")
        directory.mkdir(exist_ok=True)
        (directory / "hubcache.pem").write_bytes((self.confdir / "mitmproxy-ca-cert.pem").read_bytes())
        return directory
