"""The listening sockets of the doors, shared by all processes: whoever is idle accepts the next client.

One queue for all was chosen over a socket for each (`SO_REUSEPORT`): there the kernel spreads by a hash, and a client
may wait behind a busy process while another has nothing to do.
"""

import asyncio
import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from mitmproxy.proxy.mode_servers import AsyncioServerInstance, ServerInstance
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode

from ..clients.limits import ClientLimits

logger = logging.getLogger("hubcache")

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 1.0
_UNSENT = 512 << 10
"""Bytes that the kernel takes for a client beyond what is on its way. It would take 4 MiB, all at once: they are out of
the processor's cache when their turn comes (8 clients over loopback with this limit, as a part of without: 1.09), and
each of many slow clients would hold as much. What is on its way to a distant client is not limited by it."""

_BACKLOG = 4096
"""Clients that may wait to be accepted, each time that a fleet begins to pull at once. mitmproxy asks for 100, and who
comes after them is refused. The kernel permits no more than `net.core.somaxconn`, which is 4096 since Linux 5.4."""

DESCRIPTORS = "HUBCACHE_DOORS"
"""Environment variable of a worker: JSON, the inherited descriptors by mode."""


def without_quic(modes: Iterable[str]) -> None:
    """Have mitmproxy open no UDP socket for HTTP/3 beside the TCP socket of a `reverse:https`.

    No client of registries speaks it. Its server lives in threads of another runtime, which crash a process that ends
    while they come back to Python.
    """
    for mode in map(ProxyMode.parse, modes):  # which keeps one instance of each, and the server asks that one
        if isinstance(mode, ReverseMode) and mode.transport_protocol == "both":
            mode.transport_protocol = "tcp"


def take_from(servers: Iterable[ServerInstance[Any]]) -> dict[str, list[socket.socket]]:
    """The listening sockets by mode. The servers are closed: this process accepts nobody any more.

    mitmproxy has no public name for what listens.
    """
    doors: dict[str, list[socket.socket]] = {}
    for server in servers:
        assert isinstance(server, AsyncioServerInstance)
        for listener in server._servers:
            if isinstance(listener, asyncio.Server):
                taken = [_widened(door) for door in listener.sockets]
                doors.setdefault(server.mode.full_spec, []).extend(taken)
                listener.close()
    return doors


def _widened(door: Any) -> socket.socket:
    """The same listening socket, with room for all who wait."""
    taken: socket.socket = door.dup()
    taken.listen(_BACKLOG)
    return taken


def environment(doors: dict[str, list[socket.socket]]) -> dict[str, str]:
    """What `inherit` needs to know in a process that gets the sockets."""
    return {DESCRIPTORS: json.dumps({mode: [door.fileno() for door in each] for mode, each in doors.items()})}


def inherit() -> None:
    """Have mitmproxy in this process accept at the inherited sockets, in place of opening others."""
    descriptors: dict[str, list[int]] = json.loads(os.environ[DESCRIPTORS])

    async def listen(instance: AsyncioServerInstance[Any], _host: str, _port: int) -> list[Any]:
        return [_Listener(instance, fd) for fd in descriptors[instance.mode.full_spec]]

    AsyncioServerInstance.listen = listen  # type: ignore[method-assign, assignment]


type DirectConnection = Callable[[ServerInstance[Any], tuple[str, int]], asyncio.Protocol | None]
"""Makes what speaks with a client at that address who came to that door; None where mitmproxy shall do it."""


def receive(servers: Iterable[ServerInstance[Any]], reception: DirectConnection, clients: ClientLimits) -> None:
    """Have what `reception` makes begin with each new client, in place of mitmproxy; `clients` make room for it where
    descriptors run short."""
    for server in servers:
        assert isinstance(server, AsyncioServerInstance)
        listeners: list[Any] = []
        for listener in server._servers:
            if isinstance(listener, asyncio.Server):
                listeners += [_Listener(server, _widened(door).detach()) for door in listener.sockets]
                listener.close()
            else:
                listeners.append(listener)
        server._servers = listeners
        for listener in listeners:
            if isinstance(listener, _Listener):
                listener.reception, listener.clients = reception, clients


class _Listener:
    """What mitmproxy needs of an `asyncio.Server`; that one would accept all who wait, and leave nobody to others."""

    def __init__(self, instance: AsyncioServerInstance[Any], fd: int) -> None:
        self.reception: DirectConnection = lambda *_: None
        self.clients = ClientLimits()
        self._instance = instance
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)  # of all that are accepted
        self.sockets = (self._socket,)
        self._task = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, address = await loop.sock_accept(self._socket)
            except OSError as error:
                # The client left (ECONNABORTED), or there are no more descriptors: asyncio's server goes on, too.
                if error.errno in _EXHAUSTED and self.clients.relieve():
                    await asyncio.sleep(0)  # it is closed then
                elif error.errno in _EXHAUSTED:
                    logger.warning("hubcache: cannot accept clients for a moment: %s", error.strerror)
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            self.clients.make_room(client.fileno())
            protocol = self.reception(self._instance, address[:2])
            if protocol is None:
                protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(), self._instance.handle_stream)
            await loop.connect_accepted_socket(lambda protocol=protocol: protocol, client)  # type: ignore[misc]

    def close(self) -> None:
        """Stop accepting."""
        # Not before the loop has forgotten the socket, or it would go on hearing of clients that wait for others.
        self._task.add_done_callback(lambda _: self._socket.close())
        self._task.cancel()
