"""Sends answers to the client of a direct connection, and logs a line for each."""

import asyncio

from mitmproxy.utils import human

from ..mitm.handover import HandoverState
from ..mitm.http1_server import response_head
from ..mitm.interception import Place
from ..serve.messages import Answer
from ..transfer.sources import Source
from .dependencies import DirectDependencies
from .request_head import RequestHead
from .writer import DirectWriter

_MAX_LOGGED = 500
"""Characters of a request target in a log line."""


class AnswerSender:
    """Sends answers to the client at the address `client`, by `writer` and `transport`."""

    def __init__(
        self,
        dependencies: DirectDependencies,
        transport: asyncio.Transport,
        writer: DirectWriter,
        state: HandoverState,
        client: tuple[str, int],
    ) -> None:
        self._dependencies = dependencies
        self._transport = transport
        self._writer = writer
        self._state = state
        self._client = client
        self.is_sending_body = False
        """Whether the body of an answer is being sent from its source."""

    async def send(self, request: RequestHead, place: Place, answer: Answer) -> bool:
        """Send an answer; returns whether its body came from a source. Received bytes stay encrypted meanwhile.

        Where the client disconnects, or takes none of the answer for too long, the transport is aborted.
        """
        head = response_head(answer, close=self._dependencies.group.is_draining)
        source = answer.source
        try:
            if source is not None:
                self.is_sending_body = True
                await self._send_from_source(head, source)
                self.is_sending_body = False
            else:
                await self._send(head if request.method == "HEAD" else head + answer.body)
        finally:  # also where the client disconnected
            if self._dependencies.log_answer is not None:
                self._dependencies.log_answer(self._line(request, place, answer))
        return source is not None

    async def _send(self, data: bytes) -> None:
        try:
            await self._writer.send(data)
        except OSError:  # the client disconnected, or reads nothing
            self._transport.abort()

    async def _send_from_source(self, head: bytes, source: Source) -> None:
        try:
            await self._dependencies.responder.body_delivery.send(head, source, self._writer)
            await self._writer.end()
        except OSError:  # the client disconnected before it had the last chunk
            self._transport.abort()
        finally:
            self._writer.release_socket()

    def _line(self, request: RequestHead, place: Place, answer: Answer) -> str:
        """Return the log line: what mitmdump would log, and where the answer came from."""
        host, port = self._state.address or (place.registry.host, 443)
        authority = host if port == 443 else human.format_address((host, port))
        target = request.path + (f"?{request.query}" if request.query else "")
        url = f"https://{authority}" + (target if len(target) <= _MAX_LOGGED else f"{target[:_MAX_LOGGED]}…")
        size = "broken off" if self._transport.is_closing() else human.pretty_size(answer.length)
        client = human.format_address(self._client)
        return f"{client}: {request.method} {url} << {answer.status} {answer.result.value} {size}"
