"""A raw HTTP/1.1 client: request heads without checks, answers read as slowly as a test needs, and waiting."""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TIMEOUT = 30.0
"""Seconds that a test waits for the program before it fails."""


def wait_until(condition: Callable[[], object], seconds: float = TIMEOUT, what: str = "the condition") -> None:
    """Wait until `condition` is true in another process or thread; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)


@dataclass(frozen=True)
class Answer:
    """A received answer; header names are lower case. `complete` is False if the connection ended within the body."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool

    @property
    def error(self) -> dict[str, Any]:
        """The only error in the body; fails when the body does not have the form of the distribution spec."""
        assert self.headers["content-type"] == "application/json"
        (error,) = json.loads(self.body)["errors"]
        assert set(error) == {"code", "message", "detail"}
        assert error["message"]
        return dict(error)

    @property
    def failure(self) -> tuple[int, str]:
        """Status, and error code of the distribution spec."""
        return self.status, str(self.error["code"])


class Exchange:
    """A request that was sent, and its answer, of which the head has been read."""

    def __init__(self, connection: socket.socket, method: str) -> None:
        self._connection = connection
        self._response = http.client.HTTPResponse(connection, method=method)
        try:
            self._response.begin()
        except BaseException:
            self.close()
            raise
        self.status = self._response.status
        self.headers = {name.lower(): value for name, value in self._response.getheaders()}

    def read(self, count: int) -> bytes:
        """Wait for `count` bytes of the body and return them; fewer only at its end."""
        return self._response.read(count)

    def finish(self) -> Answer:
        """Read the rest of the body; the returned answer has that rest alone."""
        complete = True
        try:
            body = self._response.read()
        except http.client.IncompleteRead as error:
            body, complete = error.partial, False
        except (ConnectionError, ssl.SSLError):
            body, complete = b"", False
        return Answer(self.status, self.headers, body, complete)

    def close(self) -> None:
        """Disconnect, also in the middle of the answer."""
        self._response.close()
        self._connection.close()


def head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """Return a request head with exactly these values, valid or not."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def request(port: int, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
    """Send a request without TLS to a port of this machine, and read its whole answer."""
    fields = {"Host": "localhost", "Connection": "close", **headers}
    fields |= {"Content-Length": str(len(body))} if body else {}
    with socket.create_connection(("localhost", port), TIMEOUT) as connection:
        connection.sendall(head(method, path, fields) + body)
        return Exchange(connection, method).finish()
