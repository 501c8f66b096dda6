"""A direct connection: one client, from CONNECT to the last answer.

mitmproxy takes over if a connection or a request is unusual, or if a request is to be passed on. It receives the
connection in its current state.
"""

import asyncio
import logging
import re

from mitmproxy.proxy.mode_specs import ReverseMode

from ..clients.draining import QUIET_SECONDS, ClientState
from ..clients.limits import REQUEST_SECONDS
from ..mitm.handover import HandoverState, hand_over
from ..mitm.http1_server import MAX_HEAD
from ..mitm.interception import Place
from ..mitm.streams import Server
from ..operate.running_request import RunningRequest
from ..serve.messages import Answer, Forward
from .answer_sender import AnswerSender
from .dependencies import DirectDependencies
from .request_head import RequestHead
from .tunnel_setup import MirrorSetup, Next, TunnelSetup
from .writer import DirectWriter

logger = logging.getLogger("hubcache")

_MAX_RECEIVED = 16 << 10
"""Bytes that a client may send while it waits for an answer, before reading is paused."""
_HEAD_START = re.compile(rb"[\r\n!#$%&'*+.^_`|~0-9A-Za-z-]")


class DirectConnection(asyncio.Protocol):
    """A client accepted by `server`, until it disconnects or `server` takes over."""

    _transport: asyncio.Transport
    _writer: DirectWriter
    _sender: AnswerSender
    _timer: asyncio.TimerHandle

    def __init__(self, dependencies: DirectDependencies, server: Server, client: tuple[str, int]) -> None:
        self._dependencies = dependencies
        self._server = server
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._state = HandoverState()
        self._setup: TunnelSetup | None = None
        """The set-up of the tunnel, or of TLS at a mirror, until it is complete."""
        if not isinstance(server.mode, ReverseMode):
            self._setup = TunnelSetup(dependencies.connects, dependencies.tls_contexts, self._state, client)
        elif dependencies.tls_contexts.serves_mirror:
            self._setup = MirrorSetup(dependencies.connects, dependencies.tls_contexts, self._state, client)
        self._received = b""
        """Bytes that are not read yet; once there is TLS, its content."""
        self._has_ended = False
        """Whether the client can send nothing more, or its connection is being closed."""
        self._answering: asyncio.Task[bool] | None = None
        self._running: RunningRequest | None = None
        """The request that is being answered."""
        self._has_answered = False
        self._last_received = self._loop.time()
        self._deadline = 0.0
        """When the connection is closed unless a request is being answered."""
        self._head_has_begun = True
        """Whether part of a request head, or of the set-up, was received or is the first that is waited for."""

    # -- called by asyncio ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._writer = DirectWriter(transport, self._state, self._dependencies.idle_seconds)
        self._sender = AnswerSender(self._dependencies, transport, self._writer, self._state, self._client)
        self._dependencies.group.clients.add(self)
        self._set_deadline(REQUEST_SECONDS)
        self._timer = self._loop.call_at(self._deadline, self._check_deadline)
        if not self._dependencies.limits.add(self, self._client[0]):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._last_received = self._loop.time()
        if self._state.is_secure and self._state.tls is not None:
            data, self._has_ended = self._state.tls.decrypt(data)
        self._received += data
        if self._answering is None:
            self._advance()
        elif len(self._received) > _MAX_RECEIVED or self._writer.uses_socket:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        if self._answering is not None:
            self._has_ended = True
        return self._has_ended

    def connection_lost(self, _: Exception | None) -> None:
        self._timer.cancel()
        self._dependencies.group.clients.discard(self)
        self._dependencies.limits.remove(self)
        if self._setup is not None and self._setup.is_shaking_hands and not self._has_ended:
            self._setup.log_distrust("the client disconnected")
        self._writer.resume()
        if self._answering is not None and self._sender.is_sending_body:  # otherwise sending will fail
            self._answering.cancel()

    def pause_writing(self) -> None:
        self._writer.pause()

    def resume_writing(self) -> None:
        self._writer.resume()

    # -- time limits ----------------------------------------------------------------------------------------------

    def _set_deadline(self, seconds: float) -> None:
        self._deadline = self._loop.time() + min(seconds, self._dependencies.idle_seconds)

    def _check_deadline(self) -> None:
        now = self._loop.time()
        if self._answering is not None:
            self._timer = self._loop.call_at(now + self._dependencies.idle_seconds, self._check_deadline)
        elif now >= self._deadline:
            self._transport.abort()
        else:
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    # -- received bytes -------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Process the received bytes as far as possible."""
        while self._received and self._take_step():
            pass
        if self._answering is not None or self._transport.get_protocol() is not self:
            return
        if self._has_ended:
            self._transport.close()
        elif self._received and not self._head_has_begun:
            self._head_has_begun = True
            self._set_deadline(REQUEST_SECONDS)
            self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    def _take_step(self) -> bool:
        """Take one step of the set-up, or begin to answer one request; returns whether to continue with the rest."""
        setup = self._setup
        if (setup is None or setup.awaits_connect) and self._may_become_head():
            return False
        if setup is None:
            return self._answer_next()
        step = setup.advance(self._received)
        self._received = step.received
        self._has_ended |= step.has_ended
        if step.to_send:
            self._transport.write(step.to_send)
        if setup.is_complete:
            self._setup = None
        return self._hand_over() if step.next is Next.HAND_OVER else step.next is Next.CONTINUE

    def _may_become_head(self) -> bool:
        """Whether the received bytes are an incomplete head. mitmproxy refuses one that is too long."""
        received = self._received
        if len(received) > MAX_HEAD or _HEAD_START.match(received) is None:
            return False
        return received.find(b"\n\r\n", 2) < 0 and received.find(b"\n\n", 2) < 0

    def _hand_over(self) -> bool:
        """Hand the connection over to mitmproxy, with the bytes that were received but not read."""
        if self._has_ended:  # mitmproxy would not be notified of the end, and does not answer after it
            self._transport.close()
            return False
        self._running = None  # mitmproxy answers the request
        self._timer.cancel()
        self._dependencies.group.clients.discard(self)
        self._dependencies.limits.remove(self)
        successor = hand_over(self._transport, self._server, self._state, self._received)
        if self._writer.is_paused:
            successor.pause_writing()
        return False

    # -- requests -------------------------------------------------------------------------------------------------

    def _answer_next(self) -> bool:
        request = RequestHead.parse(self._received)
        place = self._place(request) if request is not None else None
        if request is None or place is None:
            return self._hand_over()
        self._answering = asyncio.Task(self._answer(request, place), loop=self._loop, eager_start=True)
        if self._answering.done():
            return self._answered(self._answering)
        self._dependencies.limits.mark_busy(self)
        self._answering.add_done_callback(self._answered_later)
        return False

    def _place(self, request: RequestHead) -> Place | None:
        mode, interception = self._server.mode, self._dependencies.interception
        if isinstance(mode, ReverseMode):
            return interception.place_in_mirror(mode, request.query, request.headers.get("oci-namespace"))
        assert self._state.address is not None
        return interception.place_of(self._state.address, request.path)

    async def _answer(self, request: RequestHead, place: Place) -> bool:
        """Answer a request; returns whether to continue with the next."""
        asked = place.request(
            method=request.method,
            path=request.path,
            query=request.query,
            headers=request.headers,
            client=self._client[0],
        )
        responder = self._dependencies.responder
        running = self._running = RunningRequest(asked, responder.request_ended)
        outcome = await responder.answer(asked)
        if not isinstance(outcome, Answer):
            if isinstance(outcome, Forward):
                outcome.decision_seconds = running.seconds
            self._state.decision = outcome
            return not self._transport.is_closing() and self._hand_over()
        self._received = self._received[request.length :]
        if await self._sender.send(asked, outcome, running) and self._state.tls is not None:
            received, has_ended = self._state.tls.decrypt(b"")
            self._received += received
            self._has_ended |= has_ended
        self._has_answered = True
        if request.is_last or self._dependencies.group.is_draining:
            self._transport.close()
        return not self._transport.is_closing()

    def _answered(self, task: asyncio.Task[bool]) -> bool:
        self._answering, self._head_has_begun = None, False
        running, self._running = self._running, None
        if running is not None:
            running.failed()  # unless it was answered
        if task.cancelled():
            return False
        error = task.exception()
        if error is not None:  # a defect of this program; the client would wait forever
            logger.error("hubcache: a request failed", exc_info=error)
            self._transport.abort()
            return False
        if self._transport.get_protocol() is self:
            self._set_deadline(self._dependencies.idle_seconds)
            self._dependencies.limits.mark_idle(self)
        return task.result()

    def _answered_later(self, task: asyncio.Task[bool]) -> None:
        if self._answered(task):
            self._transport.resume_reading()
            self._advance()

    # -- limits, and an orderly stop ------------------------------------------------------------------------------

    def disconnect(self) -> None:
        """Close the connection at once; called while it waits for its client."""
        self._has_ended = True
        self._transport.abort()

    @property
    def is_closed(self) -> bool:
        return self._transport.is_closing() and not self._transport.get_write_buffer_size()

    @property
    def state(self) -> ClientState:
        if self._answering is not None or self._transport.get_write_buffer_size():
            return ClientState.BUSY
        is_new = not self._has_answered and self._loop.time() - self._last_received < QUIET_SECONDS
        return ClientState.NEW if is_new else ClientState.IDLE

    def close(self) -> None:
        self._has_ended = True
        self._transport.close()

    def abort(self) -> None:
        self.disconnect()
        if self._answering is not None:
            self._answering.cancel()
