"""The command line run inside of the test, and a stand-in for the control socket with answers that a test chooses."""

import contextlib
import io
import json
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from hubcache.cli.main import app
from hubcache.control.socket_file import SOCKET_NAME
from typer.testing import CliRunner, Result

DIGEST = "sha256:" + "a" * 64
OTHER_DIGEST = "sha256:" + "b" * 64


def run(*arguments: str, stdin: str = "", **environment: str) -> Result:
    """Run a command; both outputs are pipes, as in a script."""
    return CliRunner().invoke(app, arguments, input=stdin, env=environment, prog_name="hubcache")


class Replaced(Exception):
    """Raised in place of running another program instead of this process."""


class Terminal(io.StringIO):
    """An output that a command takes for a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Call:
    """A request that the stand-in received."""

    method: str
    path: str
    body: Any = None


@dataclass
class Reply:
    """An answer of the stand-in: a document, or with `events` a line of JSON for each; raw bytes for neither."""

    document: Any = None
    status: int = 200
    events: list[dict[str, Any]] | None = None
    raw: bytes | None = None

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.events is not None:
            return b"".join(json.dumps(event).encode() + b"\n" for event in self.events)
        return json.dumps(self.document).encode()


type Replies = dict[str, Reply | Callable[[Call], Reply]]


@dataclass
class ControlStandIn:
    """A server of the control socket in `directory`; `replies` are by method and path without its query."""

    directory: Path
    replies: Replies = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def run(self, *arguments: str, stdin: str = "") -> Result:
        """Run a command for this cache."""
        return run(*arguments, stdin=stdin, HUBCACHE_DIR=str(self.directory))

    def answer(self, method: str, target: str, data: bytes) -> Reply:
        try:
            body = json.loads(data) if data else None
        except ValueError:
            body = data
        call = Call(method, target, body)
        self.calls.append(call)
        reply = self.replies.get(f"{method} {target.partition('?')[0]}", Reply({"error": "no such path"}, 404))
        return reply if isinstance(reply, Reply) else reply(call)


@contextlib.contextmanager
def control_stand_in() -> Iterator[ControlStandIn]:
    """Run a stand-in of the control socket."""
    with tempfile.TemporaryDirectory(prefix="hubcache-cli-") as directory:
        stand_in = ControlStandIn(Path(directory))

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                reply = stand_in.answer(self.command, self.path, data)
                body = reply.body()
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = _serve

            def address_string(self) -> str:
                return "local"

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        with socketserver.ThreadingUnixStreamServer(str(stand_in.directory / SOCKET_NAME), Handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield stand_in
            finally:
                server.shutdown()
                thread.join()


def image(name: str = "debian:12", **changes: Any) -> dict[str, Any]:
    """Return an image as `GET /v1/images` lists it."""
    tag = name.rpartition(":")[2]
    found = {
        **{"name": name, "registry": "registry-1.docker.io", "repository": "library/debian", "tag": tag},
        **{"digest": DIGEST, "platforms": ["linux/amd64"], "size": 50 << 20, "stored_bytes": 50 << 20},
        **{"complete": True, "pinned": False, "private": False, "requests": 3, "last_request": 1000.0},
    }
    return found | changes


def status_report(**changes: Any) -> dict[str, Any]:
    """Return a status report as `GET /v1/status` answers it, of a cache without traffic."""
    from hubcache.operate.version import version

    traffic = {"requests": 0, "hits": 0, "bytes": 0, "bytes_from_store": 0, "upstream_requests": 0}
    store: dict[str, Any] = {
        "directory": "/store",
        "problem": None,
        "bytes": 5 << 30,
        "capacity": 50 << 30,
        "objects": 12,
    }
    store |= {"damage": {"count": 0, "quarantined_bytes": 0, "last": None}}
    process: dict[str, Any] = {
        **{"pid": 1, "user": 0, "python": "3.13.0", "mitmproxy": "12.3.1", "untested": None, "ca_certificate": None},
        **{"config_file": None, "descriptors": {"limit": 65536, "open": 20}, "outbound_proxy": None},
        "registries": ["registry-1.docker.io"],
    }
    report: dict[str, Any] = {
        **{"version": version(), "started": 1000.0, "uptime": 60.0, "now": 1060.0, "problems": [], "workers": 1},
        **{"listeners": [], "process": process},
        **{"store": store, "ratio": {name: dict(traffic) for name in ("hour", "day", "week")}, "ratelimit": []},
        **{"upstreams": [], "fills": [], "images": [], "pulls": {"running": [], "recent": []}, "evictions": []},
    }
    return report | changes
