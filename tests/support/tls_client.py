"""Who speaks with clients, as the product's log tells it; clients that have TLS, and what they send when, in hand."""

import contextlib
import http.client
import io
import re
import socket
import ssl
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from support.http_client import TIMEOUT, head
from support.program import HUB_HOST, Fixture, Program, RegistryClient

_LINE = re.compile(r"^(\S+: (?:GET|HEAD) \S+ << \d+ .*)$", re.MULTILINE)


def warm(program: Program) -> None:
    """Have mitmproxy make the leaf certificates: for the first client of a host it does all."""
    client = program.client("proxy")
    assert client.request("GET", "/v2/").status == 401
    assert client.token("repository:library/app:pull")


class Witness:
    """What the product says from now on."""

    def __init__(self, program: Program) -> None:
        self._product = program
        self._begin = len(program.log)

    @property
    def log(self) -> str:
        return self._product.log[self._begin :]

    @property
    def taken_over(self) -> int:
        """How many clients mitmproxy took over."""
        return self.log.count("client connect")

    @property
    def lines(self) -> list[str]:
        """What was told of answers that were given without mitmproxy; its own lines have another form."""
        return _LINE.findall(self.log)


def witness_fixture() -> Fixture:
    """A fixture for a test module that has a `program`."""

    @pytest.fixture
    def witness(program: Program) -> Witness:
        return Witness(program)

    return witness


def ask(client: RegistryClient, path: str, method: str = "GET", **headers: str) -> bytes:
    """The head of a request on a connection that is to be kept."""
    return head(method, f"/v2/{client.repo}/{path}", {"Host": HUB_HOST} | headers)


def reply(stream: BinaryIO, method: str = "GET") -> tuple[int, bytes]:
    """Status and body of the next answer; nothing that comes behind it is read."""
    status = int(stream.readline().split()[1])
    length = int(http.client.parse_headers(stream)["Content-Length"] or 0)
    return status, b"" if method == "HEAD" else stream.read(length)


def is_open(program: Program, digest: str) -> bool:
    """Whether the product holds the stored file of a blob open."""
    held = Path(f"/proc/{program.pid}/fd")
    name = digest.partition(":")[2]
    for each in held.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            if name in str(each.readlink()):
                return True
    return False


class Client:
    """A client at one of the doors that says when which bytes are sent: `inside` of TLS, where there is any."""

    def __init__(
        self, client: RegistryClient, *, way: socket.socket | None = None, name: str | None = HUB_HOST
    ) -> None:
        """Connected to the door; or on its `way` and before its hello."""
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._inside: ssl.SSLObject | None = None
        self._name = name
        self._trust = client.program.ssl_context()
        self._trust.check_hostname = name == HUB_HOST
        if way is not None:
            self.way = way
        elif client.is_proxy:
            self.way = client.program.tunnel(HUB_HOST, 443)
            self.way.sendall(self.hello())
            self.shake()
        else:
            self.way = socket.create_connection(("127.0.0.1", client.program.mirror), TIMEOUT)
        self.answers = io.BufferedReader(_Received(self))

    def hello(self) -> bytes:
        """What begins TLS."""
        self._inside = self._trust.wrap_bio(self._arrived, self._leaving, server_hostname=self._name)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._inside.do_handshake()
        return self._leaving.read()

    def shake(self, received: bytes = b"") -> None:
        """Come to terms, when the hello was sent; raises `ssl.SSLError`."""
        assert self._inside is not None
        self._arrived.write(received)
        while True:
            try:
                self._inside.do_handshake()
            except ssl.SSLWantReadError:
                self._receive()
            else:
                self.way.sendall(self._leaving.read())
                return

    def sealed(self, *pieces: bytes) -> bytes:
        """What is to be sent for these, each in records of its own."""
        if self._inside is None:
            return b"".join(pieces)
        for piece in pieces:
            self._inside.write(piece)
        return self._leaving.read()

    def send(self, *pieces: bytes) -> None:
        self.way.sendall(self.sealed(*pieces))

    def goodbye(self) -> bytes:
        """What ends TLS."""
        assert self._inside is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            self._inside.unwrap()
        return self._leaving.read()

    def end(self) -> None:
        """Say that nothing more will be said."""
        self.way.shutdown(socket.SHUT_WR)

    def some(self, most: int = 65536) -> bytes:
        """What comes next; nothing at the end."""
        if self._inside is None:
            return self.way.recv(most)
        while True:
            try:
                return self._inside.read(most)
            except ssl.SSLWantReadError:
                if not self._receive():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    def rest(self) -> bytes:
        """All that comes until the connection ends."""
        return b"".join(iter(self.some, b""))

    def _receive(self) -> bool:
        if self._leaving.pending:
            self.way.sendall(self._leaving.read())
        data = self.way.recv(65536)
        self._arrived.write(data)
        if not data and self._inside is not None and self._inside.version() is None:
            raise ssl.SSLEOFError("the connection ended during the handshake")
        return bool(data)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.way.close()


class _Received(io.RawIOBase):
    """What a client gets, as a file."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._client.some(len(buffer))
        buffer[: len(data)] = data
        return len(data)
