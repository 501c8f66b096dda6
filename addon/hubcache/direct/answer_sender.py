"""Sends answers to the client of a direct connection, records each, and logs a line for it."""

import asyncio
import time

from mitmproxy.utils import human

from ..mitm.handover import HandoverState
from ..operate.running_request import RunningRequest
from ..serve.messages import Answer, Request
from ..transfer.body_progress import BodyProgress
from ..transfer.sources import Source
from .answer_head import answer_head
from .dependencies import DirectDependencies
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

    async def send(self, request: Request, answer: Answer, running: RunningRequest) -> bool:
        """Send an answer; returns whether its body came from a source. Received bytes stay encrypted meanwhile.

        Where the client disconnects, or takes none of the answer for too long, the transport is aborted.
        """
        head = answer_head(answer, close=self._dependencies.group.is_draining)
        running.answer_begins()
        try:
            if answer.source is None:
                await self._send_from_memory(head, b"" if request.method == "HEAD" else answer.body, answer, running)
            else:
                self.is_sending_body = True
                await self._send_from_source(head, answer.source, answer, running)
                self.is_sending_body = False
        finally:  # also where the client disconnected
            if self._dependencies.log_answer is not None:
                self._dependencies.log_answer(self._line(request, answer))
        return answer.source is not None

    async def _send_from_memory(self, head: bytes, body: bytes, answer: Answer, running: RunningRequest) -> None:
        try:
            await self._writer.send(head + body)
        except OSError:  # the client disconnected, or reads nothing
            self._transport.abort()
            running.answered(answer, sent=0, is_complete=False)
        else:
            running.answered(answer, sent=len(body), is_complete=True)

    async def _send_from_source(self, head: bytes, source: Source, answer: Answer, running: RunningRequest) -> None:
        progress, has_ended = BodyProgress(), False
        try:
            await self._dependencies.responder.body_delivery.send(head, source, self._writer, progress)
            before = time.monotonic()
            await self._writer.end()
            progress.client_wait += time.monotonic() - before
            has_ended = progress.is_complete
        except OSError:  # the client disconnected before it had the last chunk
            self._transport.abort()
        finally:
            self._writer.release_socket()
            running.answered(
                answer,
                sent=progress.sent,
                is_complete=has_ended,
                source_wait=progress.source_wait,
                client_wait=progress.client_wait,
                error=progress.error,
            )

    def _line(self, request: Request, answer: Answer) -> str:
        """Return the log line: what mitmdump would log, and where the answer came from."""
        host, port = self._state.address or (request.registry.host, 443)
        authority = host if port == 443 else human.format_address((host, port))
        target = request.path + (f"?{request.query}" if request.query else "")
        url = f"https://{authority}" + (target if len(target) <= _MAX_LOGGED else f"{target[:_MAX_LOGGED]}…")
        size = "broken off" if self._transport.is_closing() else human.pretty_size(answer.length)
        client = human.format_address(self._client)
        return f"{client}: {request.method} {url} << {answer.status} {answer.result.value} {size}"
