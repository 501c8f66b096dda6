"""The listening sockets, which all processes share: an idle process accepts the next client.

One queue for all processes was chosen over a socket for each (`SO_REUSEPORT`): there the kernel distributes clients by
a hash, and a client may wait for a busy process while another is idle.
"""

import asyncio
import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from mitmproxy.proxy.mode_servers import AsyncioServerInstance
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode

from ..clients.limits import ClientLimits
from ..clients.transport import ClientTransport
from .streams import Server, stream_handler

logger = logging.getLogger("hubcache")

# mitmproxy 12.3.1: AsyncioServerInstance._servers and listen. Without them there is one process, and mitmproxy accepts
# all clients.

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 1.0
_MAX_UNSENT = 512 << 10
"""Bytes that the kernel holds for a client beyond those in flight. Without a limit it takes 4 MiB at once: these are
out of the processor's cache when they are sent (8 clients over loopback with this limit, relative to without: 1.09),
and each of many slow clients would hold as much. Bytes in flight to a distant client are not limited by it."""

_BACKLOG = 4096
"""Clients that may wait to be accepted, as when a fleet begins to pull at the same time. mitmproxy asks for 100, and
further clients are refused. The kernel permits no more than `net.core.somaxconn`, which is 4096 since Linux 5.4."""

DESCRIPTORS = "HUBCACHE_LISTENERS"
"""Environment variable of a worker: JSON, the inherited descriptors by mode."""


def without_quic(modes: Iterable[str]) -> None:
    """Have mitmproxy open no UDP socket for HTTP/3 beside the TCP socket of a `reverse:https` mode.

    Clients of registries do not speak it. Its server lives in threads of another runtime, which crash a process that
    ends while they return to Python.
    """
    for mode in map(ProxyMode.parse, modes):  # `parse` caches one instance of each mode, which the server reads
        if isinstance(mode, ReverseMode) and mode.transport_protocol == "both":
            # mitmproxy 12.3.1: ReverseMode.transport_protocol. Without it there is a UDP socket as well.
            mode.transport_protocol = "tcp"


def take_sockets(servers: Iterable[Server]) -> dict[str, list[socket.socket]]:
    """Return the listening sockets by mode, and close the servers: this process accepts no clients any more."""
    taken: dict[str, list[socket.socket]] = {}
    for server in servers:
        assert isinstance(server, AsyncioServerInstance)
        for listener in server._servers:
            if isinstance(listener, asyncio.Server):
                sockets = [_with_backlog(each) for each in listener.sockets]
                taken.setdefault(server.mode.full_spec, []).extend(sockets)
                listener.close()
    return taken


def _with_backlog(listening: Any) -> socket.socket:
    """Return the same listening socket with a longer queue."""
    duplicate: socket.socket = listening.dup()
    duplicate.listen(_BACKLOG)
    return duplicate


def environment(sockets: dict[str, list[socket.socket]]) -> dict[str, str]:
    """Return the environment variables from which `inherit` finds the sockets in a process that inherits them."""
    return {DESCRIPTORS: json.dumps({mode: [each.fileno() for each in of_mode] for mode, of_mode in sockets.items()})}


def inherit() -> None:
    """Have mitmproxy in this process accept at the inherited sockets instead of opening others."""
    descriptors: dict[str, list[int]] = json.loads(os.environ[DESCRIPTORS])

    async def listen(instance: AsyncioServerInstance[Any], _host: str, _port: int) -> list[Any]:
        inherited = descriptors.get(instance.mode.full_spec)
        # Without `--mode`, mitmproxy may open its default mode before it has loaded the addon, which sets others.
        return [_NoListener()] if inherited is None else [_Listener(instance, fd) for fd in inherited]

    AsyncioServerInstance.listen = listen  # type: ignore[method-assign, assignment]


type ProtocolFactory = Callable[[Server, tuple[str, int]], asyncio.Protocol | None]
"""Returns the protocol for a client at an address that was accepted by a server; None where mitmproxy is to serve it.
"""


def serve(servers: Iterable[Server], factory: ProtocolFactory, limits: ClientLimits) -> None:
    """Have `factory` make the protocol of each new client; `limits` closes idle ones where descriptors run short."""
    for server in servers:
        assert isinstance(server, AsyncioServerInstance)
        listeners: list[Any] = []
        for listener in server._servers:
            if isinstance(listener, asyncio.Server):
                listeners += [_Listener(server, _with_backlog(each).detach()) for each in listener.sockets]
                listener.close()
            else:
                listeners.append(listener)
        server._servers = listeners
        for listener in listeners:
            if isinstance(listener, _Listener):
                listener.factory, listener.limits = factory, limits


class _NoListener:
    """Stands for the listener of a mode that is not served; mitmproxy requires one of each mode that it opens."""

    sockets = ()

    def close(self) -> None:
        """Do nothing."""


class _Listener:
    """Accepts clients at one socket, with the methods of `asyncio.Server` that mitmproxy uses.

    `asyncio.Server` itself would accept all waiting clients, and leave none to other processes.
    """

    def __init__(self, instance: AsyncioServerInstance[Any], fd: int) -> None:
        self.factory: ProtocolFactory = lambda *_: None
        self.limits = ClientLimits()
        self._instance = instance
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        # accepted sockets inherit these
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets = (self._socket,)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        """Accept one client: the others are for idle processes, which the event loop notifies of them, too."""
        try:
            client, address = self._socket.accept()
        except (BlockingIOError, InterruptedError):  # another process has accepted it
            return
        except OSError as error:
            # The client disconnected (ECONNABORTED), or descriptors ran out: asyncio's server goes on, too.
            if error.errno in _EXHAUSTED and not self.limits.close_oldest():
                logger.warning("hubcache: cannot accept clients for a moment: %s", error.strerror)
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(_PAUSE_SECONDS, self._listen)
            return
        client.setblocking(False)
        self.limits.accepted(client.fileno())
        protocol = self.factory(self._instance, address[:2])
        if protocol is None:
            protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(), stream_handler(self._instance))
        ClientTransport(client, address).start(protocol)

    def close(self) -> None:
        """Stop accepting."""
        if self._socket.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
