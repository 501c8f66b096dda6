"""The program as users run it, in a separate process, and an HTTP client of its two listeners.

A test module shares one process: `program, client = program_fixtures(hubcache_tag_ttl="0")`. Tests that take `client`
run once for each listener, with a repository name of their own (`client.repo`). A test that needs other options uses
`running_program`.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from _pytest.fixtures import FixtureFunctionDefinition
from hubcache.oci.registry import Registry
from hubcache.oci.registry_pattern import RegistryPattern, is_pattern
from hubcache.operate.ca import ensure_ca

from support.forked_mitmdump import ForkedMitmdump, launcher
from support.http_client import TIMEOUT, Answer, Exchange, head, wait_until
from support.paths import ADDON
from support.ports import free_port
from support.processes import plain_environment
from support.standin import Hub
from support.standin.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST

HUB_HOST = "registry-1.docker.io"
TOKEN_HOST = "auth.docker.io"
LISTENERS = ("proxy", "mirror")
ACCEPT = {"Accept": ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))}
"""The media types that docker, containerd, podman and skopeo accept."""

type Fixture = FixtureFunctionDefinition
"""What `pytest.fixture` returns; pytest has no public name for it."""

_repository_numbers = itertools.count(1)


@dataclass
class RegistryClient:
    """A client of one of the program's listeners; each request is a new connection, as docker's are."""

    listener: str
    program: "Program"
    repo: str = field(default_factory=lambda: f"library/r{next(_repository_numbers)}")

    @property
    def hub(self) -> Hub:
        """The upstream of the program."""
        return self.program.hub

    @property
    def is_proxy(self) -> bool:
        return self.listener == "proxy"

    def connect(self, host: str = HUB_HOST, port: int = 443) -> socket.socket:
        """Return a connection for requests to `host`; at the mirror it always leads to the mirrored registry."""
        if not self.is_proxy:
            return socket.create_connection(("127.0.0.1", self.program.mirror), TIMEOUT)
        return self.program.ssl_context().wrap_socket(self.program.tunnel(host, port), server_hostname=host)

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

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        host: str = HUB_HOST,
        port: int = 443,
    ) -> Answer:
        """Send a request and read its whole answer."""
        exchange = self.send(method, path, headers, body, host, port)
        try:
            return exchange.finish()
        finally:
            exchange.close()

    def send_raw(self, data: bytes) -> Answer:
        """Send bytes that need not be HTTP, and return the answer; fails unless the program closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            answer = Exchange(connection, "GET").finish()
            assert connection.recv(1) == b""
            return answer

    def manifest(
        self, reference: str, headers: Mapping[str, str] | None = None, method: str = "GET", repo: str | None = None
    ) -> Answer:
        """Request a manifest of `repo` with the `Accept` that docker sends."""
        return self.request(method, f"/v2/{repo or self.repo}/manifests/{reference}", ACCEPT | dict(headers or {}))

    def blob(
        self, digest: str, headers: Mapping[str, str] | None = None, method: str = "GET", repo: str | None = None
    ) -> Answer:
        """Request a blob of `repo`."""
        return self.request(method, f"/v2/{repo or self.repo}/blobs/{digest}", headers)

    def wait_until_stored(self) -> None:
        """Wait until all fills have ended: clients get the last byte shortly before the blob is in the store."""
        wait_until(lambda: self.program.metric("hubcache_fills_in_flight") == 0)

    def token(self, scope: str, authorization: str | None = None) -> str:
        """Return a token of the token service, as clients of the proxy get it."""
        headers = {"Authorization": authorization} if authorization else {}
        path = f"/token?service=registry.docker.io&scope={scope}"
        answer = self.request("GET", path, headers, host=TOKEN_HOST)
        assert answer.status == 200
        return str(json.loads(answer.body)["token"])


class Program:
    """mitmdump with the addon, in front of `hub`. Store, CA and ports stay the same over restarts."""

    may_fork = False
    """Whether mitmdump is started as in `support.forked_mitmdump` where that is possible."""

    def __init__(
        self, directory: Path, hub: Hub, options: Mapping[str, str | list[str]], mirror_of: str = HUB_HOST
    ) -> None:
        self.hub = hub
        self.proxy, self.mirror, self.status = free_port(), free_port(), free_port()
        self.directory = directory
        self.store = directory / "store"
        self.confdir = directory / "ca"
        self.log_file = directory / "program.log"
        self.environment: dict[str, str] = {}
        """Variables besides those of `plain_environment`."""
        hosts = [HUB_HOST, TOKEN_HOST]
        for one in options.get("hubcache_registries", []):
            domain = RegistryPattern.parse(one).domain if is_pattern(one) else Registry.parse(one).hostname
            hosts += [] if domain is None else [domain]
        # If `confdir` contained no CA, mitmproxy would create one that may sign for every host. Users who do not set
        # `confdir` have a constrained CA, like the one that is created here.
        ensure_ca(self.confdir, hosts, datetime.now(UTC))
        values: dict[str, str | list[str]] = {
            "hubcache_dir": str(self.store),
            "hubcache_registries": [f"{HUB_HOST}={hub.url()}"],
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
        self._process: subprocess.Popen[bytes] | ForkedMitmdump | None = None
        self._log_checked = 0

    # -- the process

    def launch(self) -> None:
        """Start the process without waiting for it."""
        with self.log_file.open("ab") as log:
            if self.may_fork and not self.environment and launcher().starts(self.command):
                self._process = launcher().start(self.command, log.fileno())
                return
            self._process = subprocess.Popen(
                self.command,
                env=plain_environment() | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> None:
        """Start the process, and wait until it serves."""
        self.launch()
        self.wait_until_serving()

    def wait_until_serving(self, seconds: float = TIMEOUT) -> None:
        """Wait until the process serves; an early exit fails the test with its log."""
        wait_until(self._serves, seconds, "the status page")

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return self.status_page("/healthz") != b""
        except OSError:
            return False

    def wait_for_exit(self) -> int:
        """Wait until the process ends by itself; returns its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(TIMEOUT)
        finally:
            self._process.kill()

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        """End the process, if it runs."""
        if self._process is not None:
            self._process.send_signal(with_signal)
            try:
                self._process.wait(TIMEOUT)
            finally:
                self._process.kill()
                self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All output of the process, also of earlier starts."""
        return self.log_file.read_text(errors="replace")

    def wait_for_log(self, words: str) -> None:
        """Wait until the log contains `words`."""
        wait_until(lambda: words in self.log)

    def assert_no_errors(self) -> None:
        """Fail if the log has a traceback since the last call, or the Hub recorded a violation (`Hub.violations`)."""
        new, self._log_checked = self.log[self._log_checked :], len(self.log)
        for complaint in ("Traceback", "has crashed", "never retrieved"):
            assert complaint not in new, new
        violations, self.hub.violations = self.hub.violations, []
        assert violations == []

    # -- clients

    def client(self, listener: str) -> RegistryClient:
        """Return a client of a listener ("proxy" or "mirror"), with a repository name that no other client has."""
        return RegistryClient(listener, self)

    def tunnel(self, host: str, port: int) -> socket.socket:
        """Return a connection after an accepted CONNECT."""
        connection = socket.create_connection(("127.0.0.1", self.proxy), TIMEOUT)
        connection.sendall(head("CONNECT", f"{host}:{port}", {"Host": f"{host}:{port}"}))
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = connection.recv(4096)
            assert piece, f"CONNECT was answered with {answer!r}"
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return connection

    def ssl_context(self) -> ssl.SSLContext:
        """Return a client context that trusts this program's CA and no other."""
        return ssl.create_default_context(cafile=str(self.confdir / "mitmproxy-ca-cert.pem"))

    # -- the status listener

    def status_page(self, path: str) -> bytes:
        """Return a page of the status listener."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status}{path}", timeout=TIMEOUT) as answer:
            return bytes(answer.read())

    @property
    def health(self) -> dict[str, Any]:
        return dict(json.loads(self.status_page("/healthz")))

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of this name that have these labels."""
        total = 0.0
        for line in self.status_page("/metrics").decode().splitlines():
            found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if found and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")).items():
                total += float(found[2])
        return total

    def wait_for_upstreams(self) -> None:
        """Wait until all circuits are closed."""
        wait_until(lambda: not self.health["upstreams_down"])

    def reset(self) -> None:
        """Undo the changes of a test to the Hub, and wait until all circuits are closed. The store keeps its
        content."""
        self.hub.faults.clear()
        self.hub.start()
        self.hub.auth = self.hub.redirects = True
        self.hub.referrers, self.hub.referrers_page = False, None
        self.hub.limit(None)
        self.wait_for_upstreams()
        self.hub.reset_log()


@contextlib.contextmanager
def running_program(
    hub: Hub | None = None,
    mirror_of: str = HUB_HOST,
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    name: str = "mitmdump",
    **options: str | list[str],
) -> Iterator[Program]:
    """Run the program with these options and variables in front of `hub`, or of a new, empty Hub.

    `arguments` are more arguments of the command, and `name` is its name.
    """
    with contextlib.ExitStack() as stack:
        if hub is None:
            hub = stack.enter_context(Hub())
        directory = Path(tempfile.mkdtemp(prefix="hubcache-test-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        program = Program(directory, hub, options, mirror_of)
        program.environment = dict(environment or {})
        program.command[0] = str(Path(program.command[0]).with_name(name))
        program.command += arguments
        stack.callback(program.stop)
        program.start()
        yield program
        program.assert_no_errors()


def program_fixtures(
    prepare: Callable[[Program], None] = lambda _: None, **options: str | list[str]
) -> tuple[Fixture, Fixture]:
    """Return the fixtures `program` and `client` for a test module.

    `program` is one process for all tests of the module, prepared once by `prepare`; `client` is parametrised over both
    listeners.
    """

    @pytest.fixture(scope="module")
    def program() -> Iterator[Program]:
        with running_program(None, HUB_HOST, None, (), "mitmdump", **options) as running:
            prepare(running)
            yield running

    @pytest.fixture(params=LISTENERS)
    def client(request: pytest.FixtureRequest, program: Program) -> Iterator[RegistryClient]:
        program.reset()
        yield program.client(request.param)
        program.assert_no_errors()

    return program, client


def proxy_client_fixture() -> Fixture:
    """Return the fixture `proxy_client` for a module with a `program`, for tests that concern the proxy alone."""

    @pytest.fixture
    def proxy_client(program: Program) -> Iterator[RegistryClient]:
        program.reset()
        yield program.client("proxy")
        program.assert_no_errors()

    return proxy_client
