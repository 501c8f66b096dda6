"""Records the requests of flows, from their heads to their ends."""

from collections.abc import Callable

from mitmproxy import http

from ..operate.running_request import RunningRequest
from ..operate.served_request import ServedRequest
from ..serve.messages import Answer, Forward, Request
from ..transfer.body_listener import StreamedBody


class _CountedBody:
    """A flow's `stream` callable that passes a body on and counts it."""

    def __init__(self) -> None:
        self.sent = 0

    def __call__(self, data: bytes) -> bytes:
        self.sent += len(data)
        return data


class FlowRecords:
    """The flows that are being answered. `record` receives the record of each when it ends."""

    def __init__(self, record: Callable[[ServedRequest], None]) -> None:
        self._record = record
        self._running: dict[str, RunningRequest] = {}
        self._outcomes: dict[str, Answer | Forward] = {}
        self._bodies: dict[str, _CountedBody] = {}
        """Bodies of forwarded answers. All three are by the ids of flows."""

    def begin(self, flow: http.HTTPFlow, request: Request) -> None:
        """Begin with a request whose head was received."""
        self._running[flow.id] = RunningRequest(request, self._record)

    def decided(self, flow: http.HTTPFlow, outcome: Answer | Forward) -> None:
        """Note how the request is answered."""
        running = self._running.get(flow.id)
        if running is None:
            return
        self._outcomes[flow.id] = outcome
        if isinstance(outcome, Forward):
            running.was_decided(outcome)
        elif outcome.source is None:
            running.answer_begins()

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Note that the answer begins; the body of a forwarded one is counted, as it is streamed."""
        running = self._running.get(flow.id)
        if running is None or flow.response is None:
            return
        running.answer_begins()
        if isinstance(self._outcomes.get(flow.id), Forward):
            flow.response.stream = self._bodies[flow.id] = _CountedBody()

    def ended(self, flow: http.HTTPFlow, delivery: StreamedBody | None, *, is_complete: bool) -> None:
        """Record the end of a flow. `delivery` is the body from the body listener, if there was one."""
        running, outcome = self._running.pop(flow.id, None), self._outcomes.pop(flow.id, None)
        body = self._bodies.pop(flow.id, None)
        if running is None:
            return
        if outcome is None:
            running.failed()
        elif isinstance(outcome, Forward):
            _forwarded(running, outcome, flow, 0 if body is None else body.sent, is_complete)
        elif delivery is not None:
            progress = delivery.progress
            running.answered(
                outcome,
                sent=progress.sent,
                is_complete=is_complete and progress.sent == outcome.length,
                source_wait=progress.source_wait,
                client_wait=progress.client_wait,
                error="" if delivery.failure is None else str(delivery.failure),
            )
        else:
            has_body = flow.request.method != "HEAD"
            running.answered(
                outcome, sent=len(outcome.body) if has_body and is_complete else 0, is_complete=is_complete
            )


def _forwarded(running: RunningRequest, forward: Forward, flow: http.HTTPFlow, sent: int, is_complete: bool) -> None:
    response = flow.response
    status = 0 if response is None else response.status_code
    length = "" if response is None else response.headers.get("content-length", "")
    has_body = flow.request.method != "HEAD" and status not in (0, 204, 304)
    size = int(length) if length.isdecimal() and has_body else sent if is_complete else 0
    running.forwarded(forward, status, size=size, sent=sent, is_complete=is_complete)
