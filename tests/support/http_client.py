"""HTTP as a client has it in hand: raw requests, answers read as the test likes, and waiting."""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TIMEOUT = 30.0
"""Seconds after which a test gives up."""


def wait_until(condition: Callable[[], object], seconds: float = TIMEOUT) -> None:
    """Wait for something that happens in another process; fails the test when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@dataclass(frozen=True)
class Answer:
    """What came back; header names are lower case. `complete` is False when the connection ended before the body."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool

    @property
    def error(self) -> dict[str, Any]:
        """The one error of the body; fails when it is not in the form of the distribution spec."""
        assert self.headers["content-type"] == "application/json"
        (error,) = json.loads(self.body)["errors"]
        assert set(error) == {"code", "message", "detail"}
        assert error["message"]
        return dict(error)

    @property
    def failure(self) -> tuple[int, str]:
        """Status and OCI code."""
        return self.status, str(self.error["code"])


class Exchange:
    """A request that was sent and whose answer is read as the test likes."""

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
        """So many bytes of the body, waiting for them; fewer only at its end."""
        return self._response.read(count)

    def finish(self) -> Answer:
        """The rest of the answer."""
        complete = True
        try:
            body = self._response.read()
        except http.client.IncompleteRead as error:
            body, complete = error.partial, False
        except (ConnectionError, ssl.SSLError):
            body, complete = b"", False
        return Answer(self.status, self.headers, body, complete)

    def close(self) -> None:
        """Leave, whatever is still to come."""
        self._response.close()
        self._connection.close()


def head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """A request head as it is given, checked by nobody."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
