"""TLS on a socket with blocking calls."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hubcache.transfer.download_connection import DownloadConnection
from hubcache.transfer.tls_socket import TlsSocket
from support.standin import random_bytes
from support.standin import tls as standin_tls

SECONDS = 60.0
"""Time-out that a busy machine does not exceed."""


type Connect = Callable[[Callable[[ssl.SSLSocket], None]], AbstractContextManager[Pair]]


@dataclass
class Pair:
    """A client's connected socket, and the contexts of both sides."""

    client: socket.socket
    trusting: ssl.SSLContext
    name: str = "hub.test"
    server_failures: list[str] = field(default_factory=list)
    """Reasons of errors of TLS at the server."""

    def secured(self) -> TlsSocket:
        secured = TlsSocket(self.client, self.trusting, self.name)
        secured.do_handshake()
        return secured


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    """Return a context manager for a server that calls a function with its side of the connection."""
    authority, context = standin_tls.make(tmp_path, ["hub.test"])
    trusting = ssl.create_default_context(cafile=str(authority))

    @contextmanager
    def connected(serve: Callable[[ssl.SSLSocket], None]) -> Iterator[Pair]:
        client, server = socket.socketpair()
        client.settimeout(SECONDS)

        pair = Pair(client, trusting)

        def run() -> None:
            try:
                with closing(server), context.wrap_socket(server, server_side=True) as secured:
                    serve(secured)
            except ssl.SSLError as error:
                pair.server_failures.append(error.reason)
            except OSError:
                pass  # the client disconnected

        thread = threading.Thread(target=run)
        thread.start()
        try:
            with closing(client):
                yield pair
        finally:
            thread.join()

    return connected


def received(tls: TlsSocket, size: int = 100_000) -> bytes:
    """Return all bytes until the connection ends, read in pieces of `size`."""
    found, buffer = bytearray(), memoryview(bytearray(size))
    while count := tls.recv_into(buffer):
        found += buffer[:count]
    return bytes(found)


@pytest.mark.parametrize("size", [1, 1000, 16_384, 1 << 20])
def test_bytes_arrive_in_pieces_of_any_size(connect: Connect, size: int) -> None:
    data = random_bytes(3_000 if size == 1 else 1_000_000)
    with connect(lambda server: server.sendall(data)) as pair:
        assert received(pair.secured(), size) == data


def test_bytes_are_sent(connect: Connect) -> None:
    found = bytearray()

    def serve(server: ssl.SSLSocket) -> None:
        while piece := server.recv(100_000):
            found.extend(piece)
            if len(found) == 500_000:
                server.sendall(b"all")

    data = random_bytes(500_000)
    with connect(serve) as pair:
        secured = pair.secured()
        secured.sendall(data)
        assert secured.recv_into(bytearray(3)) == 3
    assert found == data


def test_what_has_arrived_is_returned_before_the_buffer_is_full(connect: Connect) -> None:
    may_end = threading.Event()

    def serve(server: ssl.SSLSocket) -> None:
        server.sendall(b"first")
        may_end.wait()

    with connect(serve) as pair:
        assert pair.secured().recv_into(bytearray(100)) == 5
        may_end.set()


def test_end_without_close_notify_is_an_end(connect: Connect) -> None:
    """The length of a body shows whether it is complete; `ssl.SSLSocket` does the same."""

    def serve(server: ssl.SSLSocket) -> None:
        server.sendall(b"some")
        socket.socket.shutdown(server, socket.SHUT_RDWR)

    with connect(serve) as pair:
        assert received(pair.secured()) == b"some"


def test_end_with_close_notify_is_an_end(connect: Connect) -> None:
    def serve(server: ssl.SSLSocket) -> None:
        server.sendall(b"some")
        server.unwrap()

    with connect(serve) as pair:
        assert received(pair.secured()) == b"some"


def test_connection_whose_tls_has_ended_is_not_used_again(connect: Connect) -> None:
    has_ended, may_close = threading.Event(), threading.Event()

    def serve(server: ssl.SSLSocket) -> None:
        server.recv(1000)
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
        server.settimeout(0)
        with suppress(ssl.SSLWantReadError):  # its close_notify is sent, the client's is not waited for
            server.unwrap()
        has_ended.set()
        may_close.wait()

    with connect(serve) as pair:
        connection = DownloadConnection(pair.client, SECONDS)
        connection.secure(pair.trusting, pair.name, SECONDS)
        response = connection.send("GET", "/", {"Host": pair.name})
        assert response.read() == b"body"
        has_ended.wait()
        is_reusable = connection.end(response)
        may_close.set()
    assert not is_reusable


def test_read_without_waiting_fails_when_nothing_has_arrived(connect: Connect) -> None:
    may_end = threading.Event()

    def serve(_: ssl.SSLSocket) -> None:
        may_end.wait()

    with connect(serve) as pair:
        secured = pair.secured()
        secured.settimeout(0)
        with pytest.raises(BlockingIOError):
            secured.recv_into(bytearray(1))
        may_end.set()


def test_certificate_of_another_name_is_refused(connect: Connect) -> None:
    with connect(lambda _: None) as pair:
        pair.name = "other.test"
        with pytest.raises(ssl.SSLCertVerificationError):
            pair.secured()


def test_server_receives_the_reason_of_a_failed_handshake(connect: Connect) -> None:
    with connect(lambda _: None) as pair:
        pair.trusting = ssl.create_default_context()
        with pytest.raises(ssl.SSLCertVerificationError):
            pair.secured()
    assert pair.server_failures == ["TLSV1_ALERT_UNKNOWN_CA"]


def test_handshake_ends_with_the_time_out_also_when_bytes_drip(connect: Connect) -> None:
    client, server = socket.socketpair()
    with closing(client), closing(server):
        client.settimeout(0.3)

        def drip() -> None:
            record = b"\x16\x03\x03\x40\x00" + b"\x02\x00\x3f\xfc"  # a ServerHello that never ends
            with suppress(OSError):
                for byte in record + bytes(1000):
                    server.send(bytes([byte]))
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            TlsSocket(client, ssl.create_default_context(), "hub.test").do_handshake()
        assert time.monotonic() - began < 10
        client.close()
        thread.join()


def test_server_that_speaks_no_tls_is_an_ssl_error(connect: Connect) -> None:
    client, server = socket.socketpair()
    with closing(client), closing(server):
        client.settimeout(SECONDS)
        server.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            TlsSocket(client, ssl.create_default_context(), "hub.test").do_handshake()
