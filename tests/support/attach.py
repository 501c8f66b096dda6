"""A machine with stand-ins for container engines, on which the attach script runs."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hubcache.setup.pages import ATTACH_SCRIPT

from support.required import missing

TOOLS = "sh cat sed grep cp mv rm mkdir rmdir dirname chmod readlink stat cksum mktemp tr curl uname ls sleep"


class Cache(ThreadingHTTPServer):
    """A stand-in for the cache: it serves the ping, a CA certificate, and the number of requests that it has
    answered."""

    answered = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Cache

    def do_GET(self) -> None:
        bodies = {"/v2/": b"{}", "/ca.crt": b"PEM\n", "/setup/answered": f"{self.server.answered}\n".encode()}
        if self.path == "/pull":
            self.server.answered += 7
        body = bodies.get(self.path, b"")
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Machine:
    """A machine with some engines: a root directory, and a directory of programs that is its PATH."""

    def __init__(self, directory: Path, cache: Cache) -> None:
        self.root, self.programs, self.state = directory / "root", directory / "bin", directory / "state"
        self.cache = cache
        self.root.mkdir()
        self.programs.mkdir()
        for tool in TOOLS.split():
            if path := shutil.which(tool):
                (self.programs / tool).symlink_to(path)

    def program(self, name: str, script: str) -> None:
        """Install a shell script as a program that records its calls."""
        path = self.programs / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >>{self.root.parent}/calls\n{script}\n')
        path.chmod(0o755)

    def have(self, tool: str) -> None:
        """Make a real program of this machine available; skips the test if there is none."""
        path = sys.executable if tool == "python3" else shutil.which(tool)
        if path is None:
            missing(f"{tool} is not installed")
        self.program(tool, f'exec {path} "$@"')

    def docker(self, version: str, driver: str = "overlay2", *, through: bool = True) -> None:
        """Install a stand-in for Docker Engine, which pulls through the cache if `through` is true."""
        pull = f"curl -fsS http://{self.cache.address}/pull" if through else "true"
        self.program(
            "docker",
            f'case "$1 $3" in "version "*) echo {version} ;; "info "*Driver*) echo "{driver}" ;; esac\n'
            f'if [ "$1" = pull ]; then {pull}; fi',
        )

    def file(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def snapshot(self) -> dict[str, tuple[int, bytes]]:
        """All files with their modes, and all directories."""
        return {
            str(path.relative_to(self.root)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in self.root.rglob("*")
        }

    @property
    def calls(self) -> list[str]:
        path = self.root.parent / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def attach(
        self, *arguments: str, shell: str = "dash", cache: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        interpreter = [shutil.which(shell) or shell, *(["sh"] if shell == "busybox" else [])]
        where = [] if "--detach" in arguments else ["--mirror", cache or self.cache.address]
        environment = {
            "PATH": str(self.programs),
            "HUBCACHE_ATTACH_ROOT": str(self.root),
            "HUBCACHE_ATTACH_STATE": str(self.state),
        }
        return subprocess.run(
            [*interpreter, str(ATTACH_SCRIPT), *where, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )


def attach_fixtures() -> tuple[Any, Any]:
    """Return the fixtures `cache` and `machine`, which has no engines yet."""

    @pytest.fixture
    def cache() -> Iterator[Cache]:
        with Cache() as running:
            thread = threading.Thread(target=running.serve_forever, daemon=True)
            thread.start()
            yield running
            running.shutdown()
            thread.join()

    @pytest.fixture
    def machine(tmp_path: Path, cache: Cache) -> Machine:
        return Machine(tmp_path, cache)

    return cache, machine
