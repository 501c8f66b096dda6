"""One client without mitmproxy: CONNECT, TLS, requests and answers.

mitmproxy takes over when there is something unusual to a connection or a request, or when a request is to be passed on:
with what was said so far, at the point where it is.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mitmproxy.net.http import http1
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.utils import human
from OpenSSL import SSL

from ..clients.draining import QUIET_SECONDS, ClientGroup, Standing
from ..clients.limits import ClientLimits
from ..mitm import flow_headers
from ..mitm.handover import HandoverState, hand_over
from ..mitm.http1_server import MAX_HEAD
from ..mitm.interception import Interception, Place
from ..mitm.tls import Handshakes
from ..mitm.tunnel import ANSWER, Connects
from ..serve.messages import Answer
from ..serve.responder import Responder
from ..transfer.sources import Source
from .request_head import RequestHead
from .writer import DirectWriter

logger = logging.getLogger("hubcache")

_UNTRUSTED = re.compile("unknown ca|bad certificate|certificate unknown")
"""In alerts of clients (RFC 8446 section 6.2), as OpenSSL words them."""
_HANDSHAKE, _RECORD_HEAD = 0x16, 5
_MOST = 16 << 10
"""Bytes of a hello, and of what a client may send while it waits for an answer."""


HEAD_SECONDS = 30.0
"""What a client has for CONNECT, hello and its first request together, and for each head that it has begun. No byte
renews it, or a few bytes would hold a connection for ever."""
_MOST_TOLD = 500
"""Characters of a target in a line of the log."""
_BEGINS_HEAD = re.compile(rb"[\r\n!#$%&'*+.^_`|~0-9A-Za-z-]")


@dataclass(frozen=True, slots=True)
class DirectDependencies:
    """What receptions work with. A client that asks for nothing more is left after `patience` seconds, as by mitmproxy;
    what was answered is told to `show`, if there is one."""

    interception: Interception
    connects: Connects
    handshakes: Handshakes
    decider: Responder
    patience: float
    show: Callable[[str], None] | None
    clients: ClientLimits
    present: ClientGroup


class DirectConnection(asyncio.Protocol):
    """A client at the door of `server`, until it goes or `server` takes over."""

    _transport: asyncio.Transport
    _sending: DirectWriter

    def __init__(self, desk: DirectDependencies, server: ServerInstance[Any], client: tuple[str, int]) -> None:
        self._desk = desk
        self._server = server
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._said = HandoverState()
        self._received = b""
        """What the next step is about: once there is TLS, what is inside of it."""
        self._step = self._request if isinstance(server.mode, ReverseMode) else self._connect
        self._has_ended = False
        """Whether the client says nothing more, or is left."""
        self._answering: asyncio.Task[bool] | None = None
        self._is_sending = False
        self._has_answered = False
        self._heard_at = self._loop.time()
        self._due = 0.0
        """When the connection is ended unless a request is being answered."""
        self._has_begun = True
        """Whether a head is on its way."""

    # -- asyncio's side ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._sending = DirectWriter(transport, self._said, self._desk.patience)
        self._desk.present.clients.add(self)
        self._expect(HEAD_SECONDS)
        self._timer = self._loop.call_at(self._due, self._watch)
        if not self._desk.clients.enter(self, self._client[0]):
            transport.abort()

    def _expect(self, seconds: float) -> None:
        self._due = self._loop.time() + min(seconds, self._desk.patience)

    def _watch(self) -> None:
        now = self._loop.time()
        if self._answering is not None:
            self._timer = self._loop.call_at(now + self._desk.patience, self._watch)
        elif now >= self._due:
            self._transport.abort()
        else:
            self._timer = self._loop.call_at(self._due, self._watch)

    def dismiss(self) -> None:
        """End the connection, which waits for its client."""
        self._has_ended = True
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        if self._said.is_secure and self._said.connection is not None:
            data, self._has_ended = self._said.connection.decrypt(data)
        self._received += data
        if self._answering is None:
            self._go_on()
        elif len(self._received) > _MOST or self._sending.is_straight:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        if self._answering is not None:
            self._has_ended = True
        return self._has_ended

    def connection_lost(self, _: Exception | None) -> None:
        self._timer.cancel()
        self._desk.present.clients.discard(self)
        self._desk.clients.leave(self)
        if self._step == self._secure and not self._has_ended:
            self._say_untrusted("it left")
        self._sending.resume()
        if self._answering is not None and self._is_sending:  # else it is found out when there is something to send
            self._answering.cancel()

    def pause_writing(self) -> None:
        self._sending.pause()

    def resume_writing(self) -> None:
        self._sending.resume()

    def _go_on(self) -> None:
        while self._received and self._step():
            pass
        if self._answering is not None or self._transport.get_protocol() is not self:
            return
        if self._has_ended:
            self._transport.close()
        elif self._received and not self._has_begun:
            self._has_begun = True
            self._expect(HEAD_SECONDS)
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._watch)

    def _hand_over(self) -> bool:
        """Have mitmproxy go on, with what was received and is not read yet."""
        if self._has_ended:  # mitmproxy gives no answer to a client that says no more, and here would not hear of it
            self._transport.close()
            return False
        self._timer.cancel()
        self._desk.present.clients.discard(self)
        self._desk.clients.leave(self)
        successor = hand_over(self._transport, self._server, self._said, self._received)
        if self._sending.is_paused:
            successor.pause_writing()
        return False

    # -- at the time of a stop -----------------------------------------------------------------------------------------

    @property
    def is_gone(self) -> bool:
        return self._transport.is_closing() and not self._transport.get_write_buffer_size()

    @property
    def standing(self) -> Standing:
        if self._answering is not None or self._transport.get_write_buffer_size():
            return Standing.SERVED
        is_new = not self._has_answered and self._loop.time() - self._heard_at < QUIET_SECONDS
        return Standing.NEW if is_new else Standing.IDLE

    def leave(self) -> None:
        self._has_ended = True
        self._transport.close()

    def cut(self) -> None:
        self.dismiss()
        if self._answering is not None:
            self._answering.cancel()

    # -- what a client says, step by step; each tells whether to read on ----------------------------------------------

    def _is_partial(self) -> bool:
        """Whether what was received may become a head. One that is longer than any is mitmproxy's to refuse."""
        received = self._received
        if len(received) > MAX_HEAD or _BEGINS_HEAD.match(received) is None:
            return False
        return received.find(b"\n\r\n", 2) < 0 and received.find(b"\n\n", 2) < 0

    def _connect(self) -> bool:
        if self._is_partial():
            return False
        found = self._desk.connects.find(self._received)
        if found is None:
            return self._hand_over()
        self._said.address, length = found
        self._transport.write(ANSWER)
        self._received = self._received[length:]
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
        received, self._received = self._received, b""
        try:
            self._said.is_secure = tls.shake(received)
        except SSL.Error as error:
            self._say_untrusted(error.args[0][-1][-1] if error.args and error.args[0] else "the connection broke off")
            self._has_ended = True
        self._transport.write(tls.waiting())
        if self._said.is_secure:
            self._received, self._has_ended = tls.decrypt(b"")
            self._step = self._request
        return self._said.is_secure

    def _say_untrusted(self, reason: str) -> None:
        """The usual reason why TLS is not established; clients often tell their users less."""
        assert self._said.address is not None
        doubt = "does not" if _UNTRUSTED.search(reason) else "may not"
        client, host = human.format_address(self._client), self._said.address[0]
        logger.warning("hubcache: %s %s trust the proxy's certificate for %s: %s", client, doubt, host, reason)

    def _request(self) -> bool:
        if self._is_partial():
            return False
        asked = RequestHead.parse(self._received)
        mode = self._server.mode
        place = None
        if asked is not None and isinstance(mode, ReverseMode):
            place = self._desk.interception.place_in_mirror(mode, asked.query, asked.headers.get("oci-namespace"))
        elif asked is not None and self._said.address is not None:
            place = self._desk.interception.place_of(self._said.address, asked.path)
        if asked is None or place is None:
            return self._hand_over()
        self._answering = asyncio.Task(self._answer(asked, place), loop=self._loop, eager_start=True)
        if self._answering.done():
            return self._answered(self._answering)
        self._desk.clients.work(self)
        self._answering.add_done_callback(self._answered_later)
        return False

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _answer(self, asked: RequestHead, place: Place) -> bool:
        """Answer a request; tells whether to read on."""
        request = place.request(
            method=asked.method, path=asked.path, query=asked.query, headers=asked.headers, client=self._client[0]
        )
        outcome = await self._desk.decider.answer(request)
        if not isinstance(outcome, Answer):
            self._said.decision = outcome
            return not self._transport.is_closing() and self._hand_over()
        self._received = self._received[asked.length :]
        response = flow_headers.response(outcome)
        if self._desk.present.are_leaving:
            response.headers["Connection"] = "close"
        head = http1.assemble_response_head(response)
        try:
            if outcome.source is not None:
                self._is_sending = True
                await self._send_body(head, outcome.source)
                self._is_sending = False
            else:
                await self._send(head if asked.method == "HEAD" else head + outcome.body)
        finally:  # also where the client left
            if self._desk.show is not None:
                self._desk.show(self._line(asked, place, outcome))
        self._has_answered = True
        if asked.is_last or self._desk.present.are_leaving:
            self._transport.close()
        return not self._transport.is_closing()

    def _line(self, asked: RequestHead, place: Place, answer: Answer) -> str:
        """What mitmdump would tell in a line or two, and where the answer came from."""
        host, port = self._said.address or (place.registry.host, 443)
        authority = host if port == 443 else human.format_address((host, port))
        target = asked.path + (f"?{asked.query}" if asked.query else "")
        url = f"https://{authority}" + (target if len(target) <= _MOST_TOLD else f"{target[:_MOST_TOLD]}…")
        size = "broken off" if self._transport.is_closing() else human.pretty_size(answer.length)
        client = human.format_address(self._client)
        return f"{client}: {asked.method} {url} << {answer.status} {answer.result.value} {size}"

    async def _send(self, data: bytes) -> None:
        try:
            await self._sending.send(data)
        except OSError:  # it left, or stands still
            self._transport.abort()

    async def _send_body(self, head: bytes, source: Source) -> None:
        try:
            await self._desk.decider.body_delivery.send(head, source, self._sending)
            await self._sending.end()
        except OSError:  # it left before it had the last chunk
            self._transport.abort()
        finally:
            self._sending.leave()
        if self._said.connection is not None:
            more, has_ended = self._said.connection.decrypt(b"")
            self._received += more
            self._has_ended |= has_ended

    def _answered(self, task: asyncio.Task[bool]) -> bool:
        self._answering, self._has_begun = None, False
        if task.cancelled():
            return False
        error = task.exception()
        if error is not None:  # a defect of this program, or the client would wait for ever
            logger.error("hubcache: a request failed", exc_info=error)
            self._transport.abort()
            return False
        if self._transport.get_protocol() is self:
            self._expect(self._desk.patience)
            self._desk.clients.wait(self)
        return task.result()

    def _answered_later(self, task: asyncio.Task[bool]) -> None:
        if self._answered(task):
            self._transport.resume_reading()
            self._go_on()
