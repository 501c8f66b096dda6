"""The first words with a client, before mitmproxy: CONNECT, TLS, and requests that can be answered at once.

Clients of registries make a connection for each request. In mitmproxy that is a handler with three tasks, six layers
and some fifteen hooks, more than twice the time of all that is done here. So mitmproxy gets a connection when there is
something to it that takes a decision, at the point where it is, or from its begin when it does not begin as usual.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mitmproxy.net.http import http1
from mitmproxy.options import Options
from mitmproxy.proxy import layer
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ProxyMode, RegularMode, ReverseMode
from mitmproxy.proxy.server import ConnectionHandler
from OpenSSL import SSL

from . import flow_headers
from .connect import ANSWER, Connects, Secured, Tunnel
from .handshake import Connection, Handshakes
from .interception import Interception, Place
from .serve.messages import Answer, Request

logger = logging.getLogger("hubcache")

_CONNECTION_HOOKS = (
    *("next_layer", "http_connect", "http_connected"),
    *("tls_clienthello", "tls_start_client", "tls_established_client", "tls_failed_client"),
)
"""Where another addon listens, clients are mitmproxy's from their begin."""
_FLOW_HOOKS = ("client_connected", "client_disconnected", "requestheaders", "request", "responseheaders", "response")
"""Where another addon listens, requests are mitmproxy's."""
_INDIFFERENT = {
    *("allow_hosts", "block_global", "cert_passphrase", "certs", "confdir", "connection_strategy", "flow_detail"),
    *("http2", "key_size", "listen_host", "listen_port", "mode", "scripts", "ssl_insecure", "tcp_timeout"),
    *("ssl_verify_upstream_trusted_ca", "ssl_verify_upstream_trusted_confdir", "termlog_verbosity", "upstream_cert"),
}
"""Options that change nothing about an answer from here, or that are looked at here. Others are mitmproxy's to obey."""

_HANDSHAKE, _RECORD_HEAD = 0x16, 5
_MAX_HELLO = 16 << 10
_MAX_HEAD = 16 << 10
_REQUEST = re.compile(
    rb"(GET|HEAD) (/[!-~]*) HTTP/1\.1\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)+)\r\n",
)
"""The whole head of a request about which there is nothing to say (RFC 9112 sections 3 and 5)."""
_UNUSUAL = {"content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade"}
"""Headers with which a request has a body, or asks for more than an answer."""


def is_unseen(options: Options, is_heard: Callable[[str], bool]) -> bool:
    """Whether nobody else has to do with requests, and nobody is shown the flows that there will not be.

    `is_heard` tells of a hook whether an addon that is not known here has a function for it.
    """
    changed = {name for name in options.keys() if getattr(options, name) != options.default(name)}  # noqa: SIM118
    others = {name for name in changed - _INDIFFERENT if not name.startswith("hubcache_")}
    return not (others or options.flow_detail or any(map(is_heard, _FLOW_HOOKS)))


class Front:
    """Receives clients. `answer` tells what is at hand for a request, or None; without it all requests are mitmproxy's.

    `is_heard` tells of a hook whether an addon that is not known here has a function for it.
    """

    def __init__(
        self,
        interception: Interception,
        connects: Connects,
        handshakes: Handshakes,
        options: Options,
        is_heard: Callable[[str], bool],
        answer: Callable[[Request], Answer | None] | None,
    ) -> None:
        self.interception = interception
        self.connects = connects
        self.handshakes = handshakes
        self.answer = answer
        self.patience = float(options.tcp_timeout)
        self._receives = connects.permitted and not any(map(is_heard, _CONNECTION_HOOKS))
        self._blocks_global = options.block_global

    def receives(self, mode: ProxyMode, client: str) -> bool:
        """Whether a client at that address begins here. One that mitmproxy might turn away, is mitmproxy's."""
        if not self._receives or (self._blocks_global and _is_global(client)):
            return False
        if isinstance(mode, ReverseMode):
            return self.answer is not None and mode.scheme == "https" and self.interception.serves(mode)
        return isinstance(mode, RegularMode)

    def reception(self, server: ServerInstance[Any]) -> asyncio.Protocol:
        """For one client."""
        return _Reception(self, server)


@lru_cache(1 << 12)
def _is_global(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_global


@dataclass(frozen=True, slots=True)
class Said:
    """What was said with a client so far: a CONNECT to this address was accepted, and TLS inside of it established."""

    address: tuple[str, int]
    connection: Connection | None


class Successor(asyncio.StreamReaderProtocol):
    """What mitmproxy reads from, with what was said before."""

    said: Said | None = None


def resume(asked: layer.NextLayer, handlers: Mapping[tuple[str, ...] | str, ConnectionHandler]) -> layer.Layer | None:
    """The layer for a connection that began here; None for any other. What came first is what is inside of TLS."""
    client = asked.context.client
    handler = handlers.get(client.id)
    transport = handler.transports.get(client) if handler is not None else None
    writer = transport.writer if transport is not None else None
    protocol = writer.transport.get_protocol() if isinstance(writer, asyncio.StreamWriter) else None
    if not isinstance(protocol, Successor) or protocol.said is None:
        return None
    said, protocol.said = protocol.said, None
    if said.connection is None:
        return Tunnel.answered(asked.context, said.address)
    return Secured(asked.context, said.address, said.connection)


class _Reception(asyncio.Protocol):
    """One client at the door of `server`, until it goes or `server` takes over."""

    _transport: asyncio.Transport
    _client: str

    def __init__(self, front: Front, server: ServerInstance[Any]) -> None:
        self._front = front
        self._server = server
        self._said: Said | None = None
        self._place: Place | None = None
        self._received = b""
        """What is to be read by the next step: once there is TLS, what is inside of it."""
        self._step = self._request if isinstance(server.mode, ReverseMode) else self._connect
        self._connection: Connection | None = None
        self._has_ended = False
        self._is_writing_paused = False
        self._timer: asyncio.TimerHandle | None = None

    # -- asyncio's side ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._client = transport.get_extra_info("peername")[0]
        if self._front.receives(self._server.mode, self._client):
            self._wait()
        else:
            self._hand_over()

    def data_received(self, data: bytes) -> None:
        self._wait()
        self._received += data if self._connection is None else self._decrypted(data)
        while self._received and self._step():
            pass
        if self._has_ended and self._transport.get_protocol() is self:
            self._transport.close()

    def pause_writing(self) -> None:
        self._is_writing_paused = True
        self._transport.pause_reading()  # from a client that asks and does not read

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        """For a client that says nothing, as long as mitmproxy would."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._front.patience, self._transport.abort)

    def _hand_over(self) -> bool:
        """Have mitmproxy go on, with what was received and is not read yet."""
        if self._timer is not None:
            self._timer.cancel()
        successor = Successor(asyncio.StreamReader(), self._server.handle_stream)
        successor.said = self._said
        self._transport.set_protocol(successor)
        successor.connection_made(self._transport)
        if self._received:
            successor.data_received(self._received)
        if self._is_writing_paused:
            successor.pause_writing()
            self._transport.resume_reading()
        return False

    # -- what a client says, step by step; each tells whether there may be more to read -------------------------------

    def _connect(self) -> bool:
        found = self._front.connects.find(self._received)
        if found is None:
            return self._hand_over()
        address, length = found
        self._transport.write(ANSWER)
        self._received = self._received[length:]
        self._said = Said(address, None)
        self._place = self._front.interception.place_of(*address)
        self._step = self._hello
        return True

    def _hello(self) -> bool:
        assert self._said is not None
        address, received = self._said.address, self._received
        length = _RECORD_HEAD + int.from_bytes(received[3:5])
        if received[0] != _HANDSHAKE or length > _MAX_HELLO:
            return self._hand_over()
        if len(received) < length or length == _RECORD_HEAD:
            return False
        connection = self._front.handshakes.another(address[0]) if address[0].encode() in received else None
        if connection is None:
            return self._hand_over()
        self._said = Said(address, connection)
        self._step = self._secure
        return True

    def _secure(self) -> bool:
        assert self._said is not None
        connection = self._said.connection
        assert connection is not None
        connection.bio_write(self._received)
        self._received = b""
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            self._flush(connection)
            return False
        except SSL.Error as error:
            self._flush(connection)
            self._transport.close()
            reason = error.args[0][-1][-1] if error.args and error.args[0] else "it left"
            logger.warning("hubcache: TLS with %s for %s failed: %s", self._client, self._said.address[0], reason)
            return False
        self._connection = connection
        self._received = self._decrypted(b"")
        self._step = self._request
        return True

    def _flush(self, connection: Connection) -> None:
        with contextlib.suppress(SSL.WantReadError):
            while True:
                self._transport.write(connection.bio_read(_MAX_HELLO))

    def _decrypted(self, data: bytes) -> bytes:
        assert self._connection is not None
        plain = b""
        try:
            if data:
                self._connection.bio_write(data)
            while True:
                plain += self._connection.recv(_MAX_HEAD)
        except SSL.WantReadError:
            pass
        except SSL.Error:  # the client ends TLS, or does not speak it
            self._has_ended = True
        return plain

    def _request(self) -> bool:
        asked = _REQUEST.match(self._received[:_MAX_HEAD])
        at_hand = self._front.answer
        request = None if asked is None or at_hand is None else self._read(*asked.groups())
        answer = None if request is None or at_hand is None else at_hand(request)
        if asked is None or request is None or answer is None:
            return self._hand_over()
        self._received = self._received[asked.end() :]
        head = http1.assemble_response_head(flow_headers.response(answer))
        data = head if request.method == "HEAD" else head + answer.body
        self._transport.write(data if self._connection is None else self._connection.encrypt(data))
        if "connection" not in request.headers:
            return True
        self._transport.close()
        return False

    def _read(self, method: bytes, target: bytes, lines: bytes) -> Request | None:
        """The request; None if there is something unusual to it, or it is not for us."""
        headers: dict[str, str] = {}
        for line in lines.decode().splitlines():
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        path, _, query = target.decode().partition("?")
        mode = self._server.mode
        place = self._front.interception.place_in_mirror(mode, query) if isinstance(mode, ReverseMode) else self._place
        if (
            place is None
            or "host" not in headers
            or not _UNUSUAL.isdisjoint(headers)
            or headers.get("connection", "close").lower() != "close"
        ):
            return None
        return Request(
            method.decode(), path, place.registry, place.door, headers, query, self._client, place.is_token_service
        )
