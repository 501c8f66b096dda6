"""One client without mitmproxy: CONNECT, TLS, requests and answers.

mitmproxy takes over when there is something unusual to a connection or a request, or when a request is to be passed on:
with what was said so far, at the point where it is.
"""

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any, Protocol

from mitmproxy import connection
from mitmproxy.net.http import http1
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.proxy.server import ConnectionHandler
from OpenSSL import SSL

from . import flow_headers
from .connect import ANSWER, Connects
from .handshake import Connection, Handshakes
from .interception import Interception, Place
from .plain_request import PlainRequest
from .serve.messages import Answer, Forward, Request
from .transfer.pump import Pump
from .wire import take_small

logger = logging.getLogger("hubcache")

_HANDSHAKE, _RECORD_HEAD = 0x16, 5
_MOST = 16 << 10
"""Bytes of a hello, and of what a client may send while it waits for an answer."""


class Decider(Protocol):
    """What answers: the engine, or a worker's end of it."""

    pump: Pump

    async def answer(self, request: Request) -> Answer | Forward | None: ...


@dataclass(frozen=True, slots=True)
class Desk:
    """What receptions work with. A client that says nothing is left after `patience` seconds, as by mitmproxy."""

    interception: Interception
    connects: Connects
    handshakes: Handshakes
    decider: Decider
    patience: float


@dataclass(slots=True)
class Said:
    """What was said with a client so far, and what is decided about the request that comes next."""

    address: tuple[str, int] | None = None
    """Of the CONNECT that was accepted, if this is in a tunnel."""
    connection: Connection | None = None
    """The TLS inside of the tunnel."""
    decision: Forward | None = None


class _Successor(asyncio.StreamReaderProtocol):
    """What mitmproxy reads from, with what was said before."""

    said: Said | None = None


def said_before(client: connection.Client, handler: ConnectionHandler | None) -> Said | None:
    """What was said with a client that mitmproxy has taken over; None, too, when this is asked again."""
    transport = handler.transports.get(client) if handler is not None else None
    writer = transport.writer if transport is not None else None
    protocol = writer.transport.get_protocol() if isinstance(writer, asyncio.StreamWriter) else None
    if not isinstance(protocol, _Successor):
        return None
    said, protocol.said = protocol.said, None
    return said


class Reception(asyncio.Protocol):
    """A client at the door of `server`, until it goes or `server` takes over; a `Wire` for the bodies that it gets."""

    _transport: asyncio.Transport

    def __init__(self, desk: Desk, server: ServerInstance[Any], client: str) -> None:
        self._desk = desk
        self._server = server
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._said = Said()
        self._place: Place | None = None
        self._received = b""
        """What the next step is about: once there is TLS, what is inside of it."""
        self._step = self._request if isinstance(server.mode, ReverseMode) else self._connect
        self._is_secure = False
        self._has_ended = False
        """Whether the client says nothing more."""
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._answering: asyncio.Task[bool] | None = None
        self._is_sending = False
        self._heard_at = self._loop.time()

    # -- asyncio's side ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = self._loop.call_later(self._desk.patience, self._watch)

    def _watch(self) -> None:
        silent = 0.0 if self._answering else self._loop.time() - self._heard_at
        if silent >= self._desk.patience:
            self._transport.abort()
        else:
            self._timer = self._loop.call_later(self._desk.patience - silent, self._watch)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._received += self._decrypted(data) if self._is_secure else data
        if self._answering is None:
            self._go_on()
        elif len(self._received) > _MOST:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._has_ended = True
        return self._answering is not None

    def connection_lost(self, _: Exception | None) -> None:
        self._timer.cancel()
        self._may_write.set()
        if self._answering is not None and self._is_sending:  # else it is found out when there is something to send
            self._answering.cancel()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def _go_on(self) -> None:
        while self._received and self._step():
            pass
        if self._has_ended and self._answering is None and self._transport.get_protocol() is self:
            self._transport.close()

    def _hand_over(self) -> bool:
        """Have mitmproxy go on, with what was received and is not read yet."""
        self._timer.cancel()
        successor = _Successor(asyncio.StreamReader(), self._server.handle_stream)
        successor.said = self._said
        self._transport.set_protocol(successor)
        successor.connection_made(self._transport)
        successor.data_received(self._received)
        if self._has_ended:
            successor.eof_received()
        if not self._may_write.is_set():
            successor.pause_writing()
        self._transport.resume_reading()
        return False

    # -- what a client says, step by step; each tells whether to read on ----------------------------------------------

    def _connect(self) -> bool:
        found = self._desk.connects.find(self._received)
        if found is None:
            return self._hand_over()
        self._said.address, length = found
        self._transport.write(ANSWER)
        self._received = self._received[length:]
        self._place = self._desk.interception.place_of(*self._said.address)
        self._step = self._hello
        return True

    def _hello(self) -> bool:
        assert self._said.address is not None
        host, received = self._said.address[0], self._received
        length = _RECORD_HEAD + int.from_bytes(received[3:_RECORD_HEAD])
        if received[0] != _HANDSHAKE or length > _MOST:
            return self._hand_over()
        if len(received) < max(length, _RECORD_HEAD + 1):
            return False
        made = self._desk.handshakes.another(host) if host.encode() in received else None  # the name that it asks for
        if made is None:
            return self._hand_over()
        self._said.connection = made
        self._step = self._secure
        return True

    def _secure(self) -> bool:
        tls = self._said.connection
        assert tls is not None
        tls.bio_write(self._received)
        self._received = b""
        try:
            tls.do_handshake()
        except SSL.WantReadError:
            self._flush(tls)
            return False
        except SSL.Error as error:
            self._flush(tls)
            self._transport.close()
            reason = error.args[0][-1][-1] if error.args and error.args[0] else "it left"
            logger.warning("hubcache: TLS with %s failed: %s", self._client, reason)
            return False
        self._is_secure = True
        self._received = self._decrypted(b"")
        self._step = self._request
        return True

    def _flush(self, tls: Connection) -> None:
        with contextlib.suppress(SSL.WantReadError):
            while True:
                self._transport.write(tls.bio_read(_MOST))

    def _decrypted(self, data: bytes) -> bytes:
        tls = self._said.connection
        assert tls is not None
        plain = b""
        try:
            if data:
                tls.bio_write(data)
            while True:
                plain += tls.recv(_MOST)
        except SSL.WantReadError:
            pass
        except SSL.Error:  # the client ends TLS, or does not speak it
            self._has_ended = True
        return plain

    def _request(self) -> bool:
        asked = PlainRequest.parse(self._received)
        mode = self._server.mode
        if asked is not None and isinstance(mode, ReverseMode):
            self._place = self._desk.interception.place_in_mirror(mode, asked.query)
        if asked is None or self._place is None:
            return self._hand_over()
        self._answering = asyncio.Task(self._answer(asked, self._place), loop=self._loop, eager_start=True)
        if self._answering.done():
            return self._answered(self._answering)
        self._answering.add_done_callback(self._answered_later)
        return False

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _answer(self, asked: PlainRequest, place: Place) -> bool:
        """Answer a request; tells whether to read on."""
        request = Request(
            asked.method,
            asked.path,
            place.registry,
            place.door,
            asked.headers,
            asked.query,
            self._client,
            place.is_token_service,
        )
        outcome = await self._desk.decider.answer(request)
        if not isinstance(outcome, Answer):
            self._said.decision = outcome
            return self._hand_over()
        await take_small(outcome, self._desk.decider.pump)
        self._received = self._received[asked.length :]
        head = http1.assemble_response_head(flow_headers.response(outcome))
        if outcome.source is not None:
            self._is_sending = True
            await self._desk.decider.pump.send(head, outcome.source, self)
            self._is_sending = False
        elif not self._transport.is_closing():
            self.write(head if asked.method == "HEAD" else head + outcome.body)
        if asked.is_last:
            self._transport.close()
        return not self._transport.is_closing()

    def _answered(self, task: asyncio.Task[bool]) -> bool:
        self._answering = None
        if task.cancelled():
            return False
        error = task.exception()
        if error is not None:  # a defect of this program, or the client would wait for ever
            logger.error("hubcache: a request failed", exc_info=error)
            self._transport.abort()
            return False
        return task.result()

    def _answered_later(self, task: asyncio.Task[bool]) -> None:
        if self._answered(task):
            self._heard_at = self._loop.time()
            self._transport.resume_reading()
            self._go_on()

    def write(self, data: bytes) -> None:
        """Send bytes of an answer; raises `ConnectionResetError` when TLS has ended."""
        tls = self._said.connection
        try:
            self._transport.write(data if tls is None else tls.encrypt(data))
        except SSL.Error as error:
            raise ConnectionResetError("the client ended TLS") from error

    async def drain(self) -> None:
        """Wait until the client took nearly all; raises `OSError` when it left or stands still."""
        if not self._may_write.is_set():
            try:
                async with asyncio.timeout(self._desk.patience):
                    await self._may_write.wait()
            except TimeoutError:
                self._transport.abort()
                raise
        if self._transport.is_closing():
            raise ConnectionResetError("the client left")

    def close(self) -> None:
        """End the connection, when the rest is gone."""
        self._transport.close()
