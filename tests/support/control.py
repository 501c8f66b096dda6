"""A client of the control socket."""

import http.client
import io
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
from hubcache.control.socket_file import SOCKET_NAME, short_path

from support.http_client import TIMEOUT


async def call(directory: Path, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Return status and JSON of a request at the control socket of a store; a list of the events for a stream."""
    data = None if body is None else io.BytesIO(json.dumps(body).encode())
    with short_path(directory / SOCKET_NAME) as address:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(address)) as session,
            session.request(method, f"http://hubcache{path}", data=data, headers=headers) as response,
        ):
            text = await response.text()
            if response.content_type == "application/x-ndjson":
                return response.status, [json.loads(line) for line in text.splitlines()]
            return response.status, json.loads(text)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("hubcache", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        with short_path(self._path) as address:
            self.sock.connect(address)


def call_program(directory: Path, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Do what `call` does, in a test that is not asynchronous."""
    connection = _Connection(directory / SOCKET_NAME)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        text = response.read()
        if response.getheader("Content-Type") == "application/x-ndjson":
            return response.status, [json.loads(line) for line in text.splitlines()]
        return response.status, json.loads(text)
    finally:
        connection.close()
