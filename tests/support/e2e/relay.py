"""A relay of TCP connections, through which the other nodes of a fleet reach one node until a test cuts it."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from support.ports import free_port

_PIECE = 1 << 16


class Relay:
    """A listener whose connections lead to another port of this machine, a context manager."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Accept connections, at the same port as before."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
            self._run(self._accept, self._listener)

    def stop(self) -> None:
        """Close all connections, and refuse new ones."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in `accept`
            self._listener.close()
            self._listener = None
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join(10)

    def _run(self, work: Callable[[socket.socket], None], argument: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(argument,), daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._target), 10) as server:
            server.settimeout(None)
            with self._lock:
                self._connections |= {client, server}
            try:
                _copy_both_ways(client, server)
            finally:
                with self._lock:
                    self._connections -= {client, server}


def _copy_both_ways(one: socket.socket, other: socket.socket) -> None:
    """Copy until both sides have ended; raises `OSError` when a connection fails."""
    with selectors.DefaultSelector() as selector:
        selector.register(one, selectors.EVENT_READ, other)
        selector.register(other, selectors.EVENT_READ, one)
        while selector.get_map():
            for ready, _ in selector.select():
                source = ready.fileobj
                assert isinstance(source, socket.socket)
                if data := source.recv(_PIECE):
                    ready.data.sendall(data)
                else:
                    selector.unregister(source)
                    ready.data.shutdown(socket.SHUT_WR)
