"""The program in mitmweb, and what it shows."""

import contextlib
import json
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.http_client import TIMEOUT, wait_until
from support.ports import free_port
from support.program import Program
from support.standin import Hub

_PASSWORD = "secret"


class WebProgram(Program):
    """mitmweb with the addon."""

    def __init__(self, directory: Path, hub: Hub, options: dict[str, str | list[str]]) -> None:
        super().__init__(directory, hub, options)
        self.web = free_port()
        self.command[0] = str(Path(sys.executable).with_name("mitmweb"))
        for option in (f"web_port={self.web}", "web_open_browser=false", f"web_password={_PASSWORD}"):
            self.command += ["--set", option]

    def fetch(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> bytes:
        """Return what mitmweb's own server answers; raises `HTTPError`."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {_PASSWORD}", "Content-Type": "application/json"}
        if body is not None:
            headers |= {"Cookie": "_mitmproxy_xsrf=abcd", "X-XSRFToken": "abcd"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.web}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return bytes(answer.read())

    def flows(self) -> list[dict[str, Any]]:
        """Return all flows, as mitmweb shows them."""
        return list(json.loads(self.fetch("/flows")))

    def flow(self, path: str, comment: str = "") -> dict[str, Any]:
        """Wait for a flow whose path ends with `path` and whose comment contains `comment`; return the last one."""
        found: list[dict[str, Any]] = []

        def is_shown() -> bool:
            requests = [flow for flow in self.flows() if flow["type"] == "http" and comment in flow["comment"]]
            found[:] = [flow for flow in requests if flow["request"]["path"].endswith(path)]
            return bool(found)

        wait_until(is_shown, what=f"a flow {path} with {comment!r}")
        return found[-1]

    def command_result(self, name: str, *arguments: str) -> Any:
        """Run a command of mitmproxy and return its result; raises `AssertionError` with the error."""
        text = self.fetch(f"/commands/{urllib.parse.quote(name)}", {"arguments": list(arguments)}, "POST")
        answer = json.loads(text)
        assert "error" not in answer, answer
        return answer["value"]


@contextlib.contextmanager
def running_mitmweb(directory: Path, **options: str | list[str]) -> Iterator[WebProgram]:
    """Run the program in mitmweb in front of a new, empty Hub."""
    with Hub() as hub:
        program = WebProgram(directory, hub, {"hubcache_tag_ttl": "600"} | options)
        program.start()
        try:
            yield program
            program.assert_no_errors()
        finally:
            program.stop()
