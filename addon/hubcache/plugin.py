"""mitmproxy's flow hooks: a flow becomes a `Request`, and its outcome becomes the flow's response or destination."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.utils import human

from .access_hooks import AccessHooks
from .engine import Engine
from .mitm import credentials, flow_headers
from .mitm.flow_notes import REQUEST_SIZE, FlowNotes, counted
from .mitm.flow_records import FlowRecords
from .mitm.interception import Interception, Place
from .oci.errors import ContentTooLarge, ManifestUnknown
from .operate.served_request import ServedRequest
from .serve.errors import error_answer
from .serve.messages import MAX_SMALL_BODY, Answer, Forward, Listener, Request
from .transfer.body_listener import StreamedBody
from .workers.owner_client import OwnerClient


class FlowHooks:
    """The hooks. `take_decision` returns what was decided about a client's request before mitmproxy took over."""

    def __init__(
        self, access: AccessHooks, notes: FlowNotes, take_decision: Callable[[Client], Forward | None]
    ) -> None:
        self.interception = Interception(())
        self._access = access
        self._notes = notes
        self._take_decision = take_decision
        self._engine: Engine | OwnerClient | None = None
        self._ready = asyncio.Event()
        self._deliveries: dict[str, tuple[Answer, StreamedBody, http.Request]] = {}
        """Bodies that the body listener sends, and the clients' requests, by the ids of flows."""
        self._forwards: dict[str, tuple[Place, Forward, str | None]] = {}
        """Requests that are passed on, with the `Authorization` that the client presented, by the ids of flows."""
        self._records = FlowRecords(self._record)
        self._token_requests: dict[str, Request] = {}
        """Token requests whose bodies are awaited, by the ids of flows."""

    def serve(self, engine: Engine | OwnerClient) -> None:
        """Have `engine` answer requests, including those that already wait."""
        self._engine = engine
        self._ready.set()

    def stop(self) -> None:
        """Answer no more requests."""
        self._engine = None

    def _record(self, request: ServedRequest) -> None:
        if self._engine is not None:
            self._engine.request_ended(request)

    async def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Answer a request or pass it on, before its body is received."""
        self._access.request_received(flow)
        if flow.response or flow.error or not flow.live:
            return
        place = self.interception.place(flow)
        if place is None:
            self._pass_through(flow)
            return
        await self._ready.wait()
        assert self._engine is not None
        path, _, query = flow.request.path.partition("?")
        headers: Mapping[str, str] = flow.request.headers
        if place.is_cache:  # the pages contain the address to which the client connected
            headers = dict(headers) | {"host": human.format_address(flow.client_conn.sockname)}
        request = place.request(
            method=flow.request.method,
            path=path,
            query=query,
            headers=headers,
            client=flow.client_conn.peername[0] if flow.client_conn.peername else "",
        )
        credentials.hide(flow.request)
        self._records.begin(flow, request)
        outcome = self._take_decision(flow.client_conn) or await self._engine.answer(request)
        if outcome is None:
            length = flow_headers.body_length(flow.request)
            if length is None or length > MAX_SMALL_BODY:
                too_large = ContentTooLarge(f"a token request has a length, of at most {MAX_SMALL_BODY} bytes")
                outcome = error_answer(too_large, request.method)
        if outcome is None:
            self._token_requests[flow.id] = request  # answered in `request`, when its body is received
            return
        self._act(flow, place, outcome, request)

    async def request(self, flow: http.HTTPFlow) -> None:
        """Answer a token request (OAuth2, with a password or a refresh token) whose body has arrived; drop the body."""
        request = self._token_requests.pop(flow.id, None)
        place = self.interception.place(flow)
        if request is None or place is None or self._engine is None or not flow.live:
            return
        body, flow.request.content = flow.request.content or b"", b""
        outcome = await self._engine.answer(replace(request, body=body))
        assert outcome is not None
        self._act(flow, place, outcome, request)

    def _act(self, flow: http.HTTPFlow, place: Place, outcome: Answer | Forward, request: Request) -> None:
        self._records.decided(flow, outcome)
        if isinstance(outcome, Forward):
            self._forward(flow, place, outcome, request.headers.get("authorization"))
            self._notes.forwarded(flow, outcome, request)
        else:
            self._notes.answered(flow, outcome, place.registry.host)
            self._answer(flow, outcome)

    def _pass_through(self, flow: http.HTTPFlow) -> None:
        """Pass on a plain HTTP request through the proxy; a mirror request for an unknown namespace is answered 404."""
        if isinstance(flow.client_conn.proxy_mode, ReverseMode):
            credentials.hide(flow.request)
            unknown = ManifestUnknown("this mirror does not serve that namespace")
            self._notes.refused(flow, unknown.message)
            self._answer(flow, error_answer(unknown, flow.request.method))
        else:
            own = flow.request.headers.get("authorization")
            credentials.hide(flow.request)
            credentials.send(flow.request, own)
            self._notes.passed_through(flow)
            flow.request.stream = counted(flow.metadata, REQUEST_SIZE)

    def _answer(self, flow: http.HTTPFlow, answer: Answer) -> None:
        flow_headers.drop_body(flow.request)
        if answer.source is None:
            flow.response = flow_headers.response(answer)
            return
        assert self._engine is not None
        path, delivery = self._engine.body_listener.register(answer.source)
        self._deliveries[flow.id] = (answer, delivery, flow.request)
        flow.request = flow.request.copy()  # mitmproxy decides by the original's headers whether to keep the connection
        flow.request.scheme, flow.request.host, flow.request.port = "http", "127.0.0.1", self._engine.body_listener.port
        flow.request.path = path
        flow.request.headers.clear()
        self._access.directed(flow)

    def _forward(self, flow: http.HTTPFlow, place: Place, forward: Forward, presented: str | None) -> None:
        """Direct a flow to the upstream, with no credentials but the client's own (or the anonymous token)."""
        upstream = urlsplit(place.registry.upstream)
        flow.request.scheme = upstream.scheme
        flow.request.host = upstream.hostname or ""
        flow.request.port = upstream.port or (443 if upstream.scheme == "https" else 80)
        flow.request.stream = counted(flow.metadata, REQUEST_SIZE)
        credentials.send(flow.request, forward.authorization)
        self._access.directed_upstream(flow, is_named_by_client=place.registry.is_named_by_client)
        self._forwards[flow.id] = (place, forward, presented)

    def responseheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """Give a body from the body listener its real headers, and the flow its real address; stream other bodies.

        A tag that was pushed is forgotten before the client learns that the push was accepted.
        """
        assert flow.response is not None
        delivered = self._deliveries.get(flow.id)
        if delivered is not None:
            answer, delivery, flow.request = delivered
            # A new response: mitmproxy's client side still reads by the headers of the one that it sent.
            flow.response = flow_headers.response(answer)
            flow.response.content = None
            flow.response.stream = delivery.stream
            self._records.responseheaders(flow)
            self._notes.count_response(flow)
            return None
        flow.response.stream = True
        self._records.responseheaders(flow)
        self._notes.count_response(flow)
        place, forward, presented = self._forwards.pop(flow.id, (None, None, None))
        if place is None or forward is None:
            return None
        proxied, sent = place.listener is Listener.PROXY, forward.authorization
        flow_headers.adapt_forwarded(flow.response, place.registry, proxied=proxied, presented=presented, sent=sent)
        credentials.hide_signature(flow.response)
        if self._engine is None or forward.change is None or flow.response.status_code >= 300:
            return None
        return self._engine.content_changed(place.registry, forward.change, flow.response.headers.get("oci-subject"))

    def response(self, flow: http.HTTPFlow) -> None:
        """Forget a flow that is complete."""
        _, delivery, _ = self._deliveries.pop(flow.id, (None, None, None))
        self._records.ended(flow, delivery, is_complete=True)

    async def error(self, flow: http.HTTPFlow) -> None:
        """Forget a flow that failed: its client disconnected, or its body could not be read."""
        self._forwards.pop(flow.id, None)
        self._token_requests.pop(flow.id, None)
        _, delivery, _ = self._deliveries.pop(flow.id, (None, None, None))
        self._records.ended(flow, delivery, is_complete=False)
        if delivery is not None:
            if delivery.failure is not None:
                self._notes.broken_off(flow, delivery.failure)
            await delivery.close()
