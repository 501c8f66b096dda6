"""A fresh clone of the repository serves after one command; the tests install from the package registry."""

import contextlib
import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from support.paths import REPOSITORY
from support.required import missing

ENVIRONMENT = re.compile(r"PATH|(PIP|UV|SSL_CERT)_.*|(https?|all|no)_proxy", re.IGNORECASE)
OFFLINE = """
import fcntl, os, socket, struct, sys
os.unshare(os.CLONE_NEWNET)
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP, IFF_RUNNING
os.execv(sys.argv[1], sys.argv[1:])
"""
"""A program that runs another one in a new network namespace, which has only loopback."""
STATUS = """
import http.client, os, sys
os.setns(os.open(sys.argv[1], os.O_RDONLY))
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[2]), timeout=10)
connection.request("GET", sys.argv[3])
print(connection.getresponse().status)
"""
"""A program that prints the status of a port and path in the network namespace of another process."""


class Clone:
    """A copy of all files of the repository that Git does not ignore, used with an empty home directory."""

    def __init__(self, directory: Path) -> None:
        self.root, self.home, self.log = directory / "clone", directory / "home", directory / "serve.log"
        self.script = self.root / "scripts/serve"
        self.home.mkdir()
        inherited = {name: value for name, value in os.environ.items() if ENVIRONMENT.fullmatch(name)}
        self.environment = inherited | {"HOME": str(self.home), "HUBCACHE_PYTHON": os.path.realpath(sys.executable)}
        listing = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listing, capture_output=True, check=True).stdout.decode().split("\0"):
            source, copy = REPOSITORY / name, self.root / name
            if name and source.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)

    def version(self) -> "subprocess.CompletedProcess[str]":
        """Set up the environment if it is missing, and print the version."""
        return subprocess.run(
            [self.script, "--version"],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    @contextlib.contextmanager
    def serving(self, *arguments: str, inside: tuple[str, ...] = ()) -> Iterator[int]:
        """Run the program until the end of the block; yield its process id once it listens."""
        with self.log.open("wb") as output:
            process = subprocess.Popen(
                [*inside, str(self.script), *arguments],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            limit = time.monotonic() + 60
            while "hubcache: status at" not in self.log.read_text():
                assert process.poll() is None, self.log.read_text()
                assert time.monotonic() < limit, self.log.read_text()
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A fresh clone, set up by one command."""
    fresh = Clone(tmp_path_factory.mktemp("fresh"))
    done = fresh.version()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Mitmproxy: ")
    assert "hubcache: installing the locked dependencies\n" in done.stderr
    return fresh


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_fresh_clone_serves_after_one_command(clone: Clone) -> None:
    assert clone.version().stderr == ""
    mirror = free_port()
    modes = [f"regular@127.0.0.1:{free_port()}", f"reverse:https://registry-1.docker.io@127.0.0.1:{mirror}"]
    with clone.serving("--mode", modes[0], "--mode", modes[1], "--set", f"hubcache_status=127.0.0.1:{free_port()}"):
        assert "hubcache: proxy at 127.0.0.1:" in clone.log.read_text()
        connection = http.client.HTTPConnection("127.0.0.1", mirror, timeout=10)
        connection.request("GET", "/v2/")
        assert connection.getresponse().status == 200
        connection.close()


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_start_without_arguments_opens_all_listeners_and_needs_no_network(clone: Clone) -> None:
    if os.geteuid() != 0:
        missing("only root can create a network namespace")
    with clone.serving(inside=(sys.executable, "-c", OFFLINE)) as pid:
        log = clone.log.read_text()
        assert re.search(r"hubcache: proxy at .*:8080$", log, re.MULTILINE), log
        assert re.search(r"hubcache: mirror at .*:5000$", log, re.MULTILINE), log
        for target in (("5000", "/v2/"), ("9180", "/healthz")):
            command = [sys.executable, "-c", STATUS, f"/proc/{pid}/ns/net", *target]
            assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "200\n", log
    ca = x509.load_pem_x509_certificate((clone.root / "certs/mitmproxy-ca-cert.pem").read_bytes())
    assert ca.extensions.get_extension_for_class(x509.NameConstraints).critical, "this CA can sign for any site"
