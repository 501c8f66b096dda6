"""The product as users run it, in a process of its own, and a small HTTP client that speaks through both of its doors.

A test module shares one process: `rig, door = proxy.fixtures(hubcache_tag_ttl="0")`. Tests that take `door` run once
for each door, with a repository name of their own (`door.repo`). A test that needs other options uses `running`.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.registry import Registry
from hubcache.operate.ca import ensure_ca

from support.http_client import PATIENCE, Answer, Exchange, head, wait_until
from support.paths import ADDON
from support.ports import free_port
from support.standin import Hub
from support.standin.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

HUB_HOST = "registry-1.docker.io"
TOKEN_HOST = "auth.docker.io"
DOORS = ("proxy", "mirror")
ACCEPT = {"Accept": ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))}
"""What docker, containerd, podman and skopeo send, as far as it matters."""

_numbers = itertools.count(1)


@dataclass
class Door:
    """A client at one of the doors: every request is a new connection, as docker's are."""

    name: str
    product: "Product"
    hub: Hub
    repo: str = field(default_factory=lambda: f"library/r{next(_numbers)}")

    @property
    def is_proxy(self) -> bool:
        return self.name == "proxy"

    def connect(self, host: str = HUB_HOST, port: int = 443) -> socket.socket:
        """A connection on which requests to `host` can be sent (at the mirror: to whatever it mirrors)."""
        if not self.is_proxy:
            return socket.create_connection(("127.0.0.1", self.product.mirror), PATIENCE)
        return self.product.trust().wrap_socket(self.product.tunnel(host, port), server_hostname=host)

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        host: str = HUB_HOST,
        port: int = 443,
    ) -> Exchange:
        """Send a request and read the head of its answer."""
        connection = self.connect(host, port)
        fields = {"Host": host, "Connection": "close"} | dict(headers or {})
        if body:
            fields["Content-Length"] = str(len(body))
        connection.sendall(head(method, path, fields) + body)
        return Exchange(connection, method)

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
        """Send a request and read its answer to the end."""
        exchange = self.send(method, path, headers, **more)
        try:
            return exchange.finish()
        finally:
            exchange.close()

    def raw(self, data: bytes) -> Answer:
        """Send bytes that need not be HTTP, and read what comes back until the connection is closed."""
        with self.connect() as connection:
            connection.sendall(data)
            answer = Exchange(connection, "GET").finish()
            assert connection.recv(1) == b""
            return answer

    def manifest(
        self, reference: str, headers: Mapping[str, str] | None = None, method: str = "GET", repo: str | None = None
    ) -> Answer:
        """A manifest of `repo`, asked for as docker does."""
        return self.request(method, f"/v2/{repo or self.repo}/manifests/{reference}", ACCEPT | dict(headers or {}))

    def blob(
        self, digest: str, headers: Mapping[str, str] | None = None, method: str = "GET", repo: str | None = None
    ) -> Answer:
        """A blob of `repo`."""
        return self.request(method, f"/v2/{repo or self.repo}/blobs/{digest}", headers)

    def settle(self) -> None:
        """Wait until what was fetched is in the store: clients have the last byte a moment before."""
        wait_until(lambda: self.product.metric("hubcache_fills_in_flight") == 0)

    def token(self, scope: str, authorization: str | None = None) -> str:
        """A token from the token service, as clients of the proxy door get it."""
        headers = {"Authorization": authorization} if authorization else {}
        path = f"/token?service=registry.docker.io&scope={scope}"
        answer = self.request("GET", path, headers, host=TOKEN_HOST)
        assert answer.status == 200
        return str(json.loads(answer.body)["token"])


class Product:
    """mitmdump with the addon. Store, CA and ports stay the same over restarts."""

    def __init__(
        self, directory: Path, hub: Hub | None, options: Mapping[str, str | list[str]], mirror_of: str = HUB_HOST
    ) -> None:
        self.proxy, self.mirror, self.status = free_port(), free_port(), free_port()
        self.directory = directory
        self.store = directory / "store"
        self.confdir = directory / "ca"
        self.log_file = directory / "log"
        hosts = [HUB_HOST, TOKEN_HOST]
        hosts += [Registry.parse(one).hostname for one in options.get("hubcache_registries", [])]
        # mitmproxy makes a CA for every site where it finds none; what users have without `confdir` is this one.
        ensure_ca(self.confdir, hosts, datetime.now(UTC))
        values: dict[str, str | list[str]] = {
            "hubcache_dir": str(self.store),
            "hubcache_registries": [f"{HUB_HOST}={hub.url()}"] if hub else [],
            "hubcache_status": f"127.0.0.1:{self.status}",
            "confdir": str(self.confdir),
            "hubcache_workers": os.environ.get("HUBCACHE_TEST_WORKERS", "1"),
            "listen_host": "127.0.0.1",
            "hubcache_stop_within": "1",
            **options,
        }
        self.command = [str(Path(sys.executable).with_name("mitmdump")), "-s", str(ADDON / "cache.py")]
        self.command += ["--mode", f"regular@{self.proxy}", "--mode", f"reverse:https://{mirror_of}@{self.mirror}"]
        for name, value in values.items():
            for one in [value] if isinstance(value, str) else value:
                self.command += ["--set", f"{name}={one}"]
        self._process: subprocess.Popen[bytes] | None = None

    # life

    def launch(self) -> None:
        """Start the process, and do not wait for anything."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self) -> None:
        """Start, and wait until it serves."""
        self.launch()
        wait_until(self._serves)

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return self.fetch("/healthz") != b""
        except OSError:
            return False

    def ended(self) -> int:
        """Wait until the process ends by itself; returns its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._process.kill()

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        """End the process, if it runs."""
        if self._process is not None:
            self._process.send_signal(with_signal)
            try:
                self._process.wait(PATIENCE)
            finally:
                self._process.kill()
                self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        """All that the process wrote."""
        return self.log_file.read_text(errors="replace")

    def wait_for_log(self, words: str) -> None:
        """Wait until it says so."""
        wait_until(lambda: words in self.log)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # access

    def door(self, name: str, hub: Hub) -> Door:
        return Door(name, self, hub)

    def tunnel(self, host: str, port: int) -> socket.socket:
        """A connection after an accepted CONNECT."""
        connection = socket.create_connection(("127.0.0.1", self.proxy), PATIENCE)
        connection.sendall(head("CONNECT", f"{host}:{port}", {"Host": f"{host}:{port}"}))
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = connection.recv(4096)
            assert piece, f"CONNECT was answered with {answer!r}"
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return connection

    def trust(self) -> ssl.SSLContext:
        """Trust in this product's CA and no other."""
        return ssl.create_default_context(cafile=str(self.confdir / "mitmproxy-ca-cert.pem"))

    def fetch(self, path: str) -> bytes:
        """A page of the status listener."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status}{path}", timeout=PATIENCE) as answer:
            return bytes(answer.read())

    @property
    def health(self) -> dict[str, Any]:
        return dict(json.loads(self.fetch("/healthz")))

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        total = 0.0
        for line in self.fetch("/metrics").decode().splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")).items():
                total += float(found[2])
        return total


@dataclass
class Rig:
    """A Hub and the product in front of it."""

    hub: Hub
    product: Product
    checked: int = 0

    def door(self, name: str) -> Door:
        return self.product.door(name, self.hub)

    def refresh(self) -> None:
        """Make it as good as new, except for what is stored: no faults, all circuits closed."""
        self.hub.faults.clear()
        self.hub.start()
        self.hub.auth = self.hub.redirects = True
        self.hub.referrers, self.hub.referrers_page = False, None
        self.hub.limit(None)
        wait_until(lambda: not self.product.health["upstreams_down"])
        self.hub.reset_log()

    def check(self) -> None:
        """Fail when something happened that never may, whatever the test was about."""
        said, self.checked = self.product.log[self.checked :], len(self.product.log)
        for complaint in ("Traceback", "has crashed", "never retrieved"):
            assert complaint not in said, said
        violations, self.hub.violations = self.hub.violations, []
        assert violations == []


@contextlib.contextmanager
def running(hub: Hub | None = None, mirror_of: str = HUB_HOST, **options: str | list[str]) -> Iterator[Rig]:
    """The product with these options in front of `hub`, or of an empty Hub of its own."""
    with contextlib.ExitStack() as stack:
        if hub is None:
            hub = stack.enter_context(Hub())
        directory = Path(tempfile.mkdtemp(prefix="hubcache-test-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        rig = Rig(hub, Product(directory, hub, options, mirror_of))
        stack.callback(rig.product.stop)
        rig.product.start()
        yield rig
        rig.check()


def fixtures(prepare: Callable[[Rig], None] = lambda _: None, **options: str | list[str]) -> tuple[Any, Any]:
    """Two fixtures for a test module: `rig`, one process for all its tests, which is to `prepare` once, and `door`,
    parametrised over both."""

    @pytest.fixture(scope="module")
    def rig() -> Iterator[Rig]:
        with running(None, HUB_HOST, **options) as running_rig:
            prepare(running_rig)
            yield running_rig

    @pytest.fixture(params=DOORS)
    def door(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Door]:
        rig.refresh()
        yield rig.door(request.param)
        rig.check()

    return rig, door
