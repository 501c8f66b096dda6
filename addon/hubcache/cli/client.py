"""The client of the control socket: HTTP with JSON over a Unix socket (`addon/hubcache/control`)."""

import contextlib
import http.client
import json
import os
import pwd
import socket
from collections.abc import Iterator, Mapping
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlencode

from ..control.socket_file import SOCKET_NAME, short_path
from ..operate.version import version
from .errors import CommandError, RefusedError, UnreachableError

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
EVENT_SECONDS = 600.0
"""Longest wait for the next event of long work: one blob of many gigabytes may be read from a slow disk."""

_MAX_EVENT = 16 << 20
_BLOCK = 1 << 20

type Query = Mapping[str, str]


class ControlClient:
    """Asks the cache that has its store in `directory`. Each request is a new connection.

    All methods raise `UnreachableError` when the cache does not run or does not answer, and `RefusedError` with the
    cache's own sentence when it refuses.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / SOCKET_NAME

    def get(self, path: str, query: Query | None = None, *, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Return the answer to a GET; the cache has `seconds` for it."""
        with self.open("GET", path, query, seconds=seconds) as response:
            return self._document(response)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a POST with a JSON body."""
        with self.open("POST", path, body=json.dumps(body).encode()) as response:
            return self._document(response)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of long work as they arrive; the last one has `done`.

        Raises `CommandError` after it when it says that the work failed.
        """
        event: dict[str, Any] = {}
        with self.open("POST", path, body=json.dumps(body).encode(), seconds=EVENT_SECONDS) as response:
            while line := response.readline(_MAX_EVENT):
                event = self._parse(line)
                yield event
        if not event.get("done"):
            raise UnreachableError("the cache ended before the work was done; see its log")
        if error := event.get("error"):
            raise CommandError(str(error))

    def put(self, path: str, body: BinaryIO | RawIOBase, size: int, query: Query | None = None) -> dict[str, Any]:
        """Send `size` bytes of a file, and return the answer."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        with self.open("PUT", path, query, body=body, headers=headers, seconds=EVENT_SECONDS) as response:
            return self._document(response)

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        body: bytes | BinaryIO | RawIOBase | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> Iterator[http.client.HTTPResponse]:
        """Open a successful response for reading; `seconds` is the longest wait for its next bytes."""
        connection = _Connection(self.path, seconds)
        fields = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            # An early answer, such as "it does not fit", ends the sending of a body.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, body, fields | dict(headers or {}))
            response = connection.getresponse()
            if response.status >= http.client.BAD_REQUEST:
                raise self._error(response)
            yield response
        except TimeoutError as error:
            raise UnreachableError(f"the cache did not answer within {seconds:.0f} seconds ({self.path})") from error
        except (ConnectionResetError, http.client.HTTPException) as error:
            raise UnreachableError(f"the cache ended while it answered ({self.path}); see its log") from error
        finally:
            connection.close()

    def _document(self, response: http.client.HTTPResponse) -> dict[str, Any]:
        return self._parse(response.read())

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            document = json.loads(data)
        except ValueError as error:
            raise CommandError(f"the cache sent no JSON; {_SAME_VERSION}") from error
        if not isinstance(document, dict):
            raise CommandError(f"the cache sent JSON that is no object; {_SAME_VERSION}")
        return document

    def _error(self, response: http.client.HTTPResponse) -> CommandError:
        """Return the error for an unsuccessful response: `{"error": "sentence"}`."""
        try:
            message = str(json.loads(response.read(_MAX_EVENT))["error"])
        except (ValueError, LookupError, TypeError):
            message = f"the cache answered {response.status} {response.reason}; {_SAME_VERSION}"
        refused = response.status < http.client.INTERNAL_SERVER_ERROR or response.status in (
            http.client.SERVICE_UNAVAILABLE,
            http.client.INSUFFICIENT_STORAGE,
        )
        return RefusedError(message) if refused else CommandError(message)


_SAME_VERSION = f"its version may not be the version of this command, which is {version()}"


class _Connection(http.client.HTTPConnection):
    """An HTTP connection to a Unix socket."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("hubcache", timeout=seconds, blocksize=_BLOCK)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket; raises `UnreachableError` that says why it is not possible."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(CONNECT_SECONDS)
            with short_path(self._path) as address:
                connection.connect(address)
            connection.settimeout(self.timeout)
        except OSError as error:
            connection.close()
            raise _unreachable(self._path, error) from error
        self.sock = connection


def _unreachable(path: Path, error: OSError) -> UnreachableError:
    if isinstance(error, PermissionError):
        return UnreachableError(f"no permission to use {path}: run this command as {_owner(path)}")
    if isinstance(error, TimeoutError):
        return UnreachableError(f"the cache does not accept connections at {path}; see its log")
    if isinstance(error, FileNotFoundError):
        what = "has no control socket" if path.parent.is_dir() else "does not exist"
        return UnreachableError(
            f"no cache runs with the store {path.parent}, which {what}: start it, or name its store with --dir"
        )
    if isinstance(error, ConnectionRefusedError):
        return UnreachableError(f"no cache runs with the store {path.parent}: its last one was killed; start it")
    return UnreachableError(f"{path} cannot be used: {error.strerror or error}")


def _owner(path: Path) -> str:
    """Return who may use a socket: the owner of the first directory or file on its way that can be examined."""
    for each in (path, *path.parents):
        try:
            user = each.stat().st_uid
        except OSError:
            continue
        if user == os.geteuid():
            continue
        try:
            return f"{pwd.getpwuid(user).pw_name} or root"
        except KeyError:
            return f"the user with the number {user}, or root"
    return "root"
