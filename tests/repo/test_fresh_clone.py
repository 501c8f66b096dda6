"""One command makes a fresh clone of the repository serve; really done, so it needs the package registry."""

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

KEPT = re.compile(r"PATH|(PIP|UV|SSL_CERT)_.*|(https?|all|no)_proxy", re.IGNORECASE)
OFFLINE = """
import fcntl, os, socket, struct, sys
os.unshare(os.CLONE_NEWNET)
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP, IFF_RUNNING
os.execv(sys.argv[1], sys.argv[1:])
"""
"""A program that runs another in a network of its own, which has nothing but loopback."""
STATUS = """
import http.client, os, sys
from support.paths import REPOSITORY
os.setns(os.open(sys.argv[1], os.O_RDONLY))
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[2]), timeout=10)
connection.request("GET", sys.argv[3])
print(connection.getresponse().status)
"""
"""A program that prints what a port and path answer in the network of another process."""


class Clone:
    """What is in the repository, or about to be, and nothing that was made in it; used with an empty home."""

    def __init__(self, room: Path) -> None:
        self.root, self.home, self.log = room / "clone", room / "home", room / "serve.log"
        self.script = self.root / "scripts/serve"
        self.home.mkdir()
        kept = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
        self.environment = kept | {"HOME": str(self.home), "HUBCACHE_PYTHON": os.path.realpath(sys.executable)}
        listing = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listing, capture_output=True, check=True).stdout.decode().split("\0"):
            source, copy = REPOSITORY / name, self.root / name
            if name and source.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)

    def version(self) -> "subprocess.CompletedProcess[str]":
        """Set up what is missing, and no more."""
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
        """The program, once it has said where everything is, until the end of the block; yields its process id."""
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
def test_a_fresh_clone_serves_with_one_command(clone: Clone) -> None:
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
def test_without_arguments_all_doors_are_open_and_no_network_is_needed(clone: Clone) -> None:
    if os.geteuid() != 0:
        missing("only root can make a network of its own")
    with clone.serving(inside=(sys.executable, "-c", OFFLINE)) as pid:
        said = clone.log.read_text()
        assert re.search(r"hubcache: proxy at .*:8080$", said, re.MULTILINE), said
        assert re.search(r"hubcache: mirror at .*:5000$", said, re.MULTILINE), said
        for place in (("5000", "/v2/"), ("9180", "/healthz")):
            command = [sys.executable, "-c", STATUS, f"/proc/{pid}/ns/net", *place]
            assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "200\n", said
    ca = x509.load_pem_x509_certificate((clone.root / "certs/mitmproxy-ca-cert.pem").read_bytes())
    assert ca.extensions.get_extension_for_class(x509.NameConstraints).critical, "this CA may vouch for any site"
