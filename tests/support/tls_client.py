"""Clients that decide which bytes are sent when, and the program's log, which shows whether mitmproxy served them."""

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

_ANSWER_LINE = re.compile(r"^(\S+: (?:GET|HEAD) \S+ << \d+ .*)$", re.MULTILINE)


def make_certificates(program: Program) -> None:
    """Have mitmproxy make the leaf certificates, which it does for the first client of each host."""
    client = program.client("proxy")
    assert client.request("GET", "/v2/").status == 401
    assert client.token("repository:library/app:pull")


class NewLog:
    """The program's log from now on."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._begin = len(program.log)

    @property
    def text(self) -> str:
        return self._program.log[self._begin :]

    @property
    def mitmproxy_clients(self) -> int:
        """The number of clients that mitmproxy served, from the start or after a handover."""
        return self.text.count("client connect")

    @property
    def answer_lines(self) -> list[str]:
        """The lines about answers of direct connections; mitmproxy's own lines have another form."""
        return _ANSWER_LINE.findall(self.text)


def new_log_fixture() -> Fixture:
    """Return a fixture for the log since the begin of a test, in a module that has a `program`."""

    @pytest.fixture
    def new_log(program: Program) -> NewLog:
        return NewLog(program)

    return new_log


def request_head(client: RegistryClient, path: str, method: str = "GET", **headers: str) -> bytes:
    """Return the head of a request on a connection that is kept; `path` is inside of the client's repository."""
    return head(method, f"/v2/{client.repo}/{path}", {"Host": HUB_HOST} | headers)


def read_answer(stream: BinaryIO, method: str = "GET") -> tuple[int, bytes]:
    """Return status and body of the next answer, and read nothing behind it."""
    status = int(stream.readline().split()[1])
    length = int(http.client.parse_headers(stream)["Content-Length"] or 0)
    return status, b"" if method == "HEAD" else stream.read(length)


def has_file_open(program: Program, digest: str) -> bool:
    """Whether the program has the stored file of a blob open."""
    descriptors = Path(f"/proc/{program.pid}/fd")
    name = digest.partition(":")[2]
    for each in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            if name in str(each.readlink()):
                return True
    return False


class RawClient:
    """A client of one of the listeners that decides which bytes are sent when, inside of TLS at the proxy."""

    def __init__(
        self, client: RegistryClient, *, connection: socket.socket | None = None, name: str | None = HUB_HOST
    ) -> None:
        """Connect to the listener, or use a `connection` on which the TLS hello is to be sent next."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._name = name
        self._trust = client.program.ssl_context()
        self._trust.check_hostname = name == HUB_HOST
        if connection is not None:
            self.socket = connection
        elif client.is_proxy:
            self.socket = client.program.tunnel(HUB_HOST, 443)
            self.socket.sendall(self.hello())
            self.handshake()
        else:
            self.socket = socket.create_connection(("127.0.0.1", client.program.mirror), TIMEOUT)
        self.stream = io.BufferedReader(_Received(self))

    def hello(self) -> bytes:
        """Begin TLS; returns the client's hello."""
        self._tls = self._trust.wrap_bio(self._incoming, self._outgoing, server_hostname=self._name)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._outgoing.read()

    def handshake(self, received: bytes = b"") -> None:
        """Complete the handshake after the hello was sent; raises `ssl.SSLError`."""
        assert self._tls is not None
        self._incoming.write(received)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._receive_ciphertext()
            else:
                self.socket.sendall(self._outgoing.read())
                return

    def encrypt(self, *pieces: bytes) -> bytes:
        """Return the bytes to send for these pieces, each in separate TLS records."""
        if self._tls is None:
            return b"".join(pieces)
        for piece in pieces:
            self._tls.write(piece)
        return self._outgoing.read()

    def send(self, *pieces: bytes) -> None:
        """Send these pieces, each in separate TLS records."""
        self.socket.sendall(self.encrypt(*pieces))

    def close_notify(self) -> bytes:
        """Return the alert that ends TLS."""
        assert self._tls is not None
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()

    def half_close(self) -> None:
        """End the client's side of the connection."""
        self.socket.shutdown(socket.SHUT_WR)

    def receive(self, most: int = 65536) -> bytes:
        """Return the next bytes; none at the end of the connection."""
        if self._tls is None:
            return self.socket.recv(most)
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                if not self._receive_ciphertext():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    def receive_all(self) -> bytes:
        """Return all bytes until the connection ends."""
        return b"".join(iter(self.receive, b""))

    def _receive_ciphertext(self) -> bool:
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())
        data = self.socket.recv(65536)
        self._incoming.write(data)
        if not data and self._tls is not None and self._tls.version() is None:
            raise ssl.SSLEOFError("the connection ended during the handshake")
        return bool(data)

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class _Received(io.RawIOBase):
    """The bytes that a client receives, as a file."""

    def __init__(self, client: RawClient) -> None:
        self._client = client

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._client.receive(len(buffer))
        buffer[: len(data)] = data
        return len(data)
