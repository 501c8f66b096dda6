"""The client's side of a connection: bounded heads, and errors as JSON where mitmproxy would tell HTML."""

import json

import pytest
from hubcache.mitm.flow_headers import drop_body
from hubcache.mitm.http1_server import MAX_HEAD, RegistryHttp1Server, install
from mitmproxy import connection, http, options
from mitmproxy.proxy import commands, context, events, layers
from mitmproxy.proxy.layers.http import HttpLayer, HTTPMode
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import (
    ErrorCode,
    RequestData,
    RequestEndOfMessage,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)


def made_context() -> context.Context:
    client = connection.Client(
        peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0, state=connection.ConnectionState.OPEN
    )
    return context.Context(client, options.Options())


class Wire:
    """A server for one client, fed by hand."""

    def __init__(self) -> None:
        self.server = RegistryHttp1Server(made_context())
        self.commands = list(self.server.handle_event(events.Start()))

    def feed(self, data: bytes) -> None:
        self.commands += self.server.handle_event(events.DataReceived(self.server.conn, data))

    def fail(self, code: ErrorCode, message: str = "why") -> None:
        self.commands += self.server.send(ResponseProtocolError(1, message, code))

    @property
    def sent(self) -> bytes:
        return b"".join(command.data for command in self.commands if isinstance(command, commands.SendData))

    @property
    def is_closed(self) -> bool:
        return any(isinstance(command, commands.CloseConnection) for command in self.commands)

    @property
    def requests(self) -> int:
        return sum(isinstance(command, ReceiveHttp) for command in self.commands)

    def answer(self) -> tuple[int, str]:
        """Status and code of what was sent."""
        head, _, body = self.sent.partition(b"\r\n\r\n")
        assert b"Content-Type: application/json" in head
        assert f"content-length: {len(body)}".encode() in head.lower()
        return int(head.split()[1]), json.loads(body)["errors"][0]["code"]


def test_request_is_taken_as_by_mitmproxy() -> None:
    wire = Wire()
    wire.feed(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (wire.requests > 0, wire.sent, wire.is_closed) == (True, b"", False)


@pytest.mark.parametrize("step", [1000, MAX_HEAD + 1, 2 * MAX_HEAD])
def test_head_without_an_end_is_refused_at_the_limit(step: int) -> None:
    wire = Wire()
    wire.feed(b"GET /v2/ HTTP/1.1\r\nCookie: ")
    fed = 0
    while not wire.is_closed:
        wire.feed(b"c" * step)
        fed += step
        assert fed <= MAX_HEAD + 2 * step
    assert wire.answer() == (431, "UNSUPPORTED")
    assert wire.requests == 0


def test_head_that_comes_whole_but_is_too_long_is_refused() -> None:
    wire = Wire()
    wire.feed(b"GET /v2/ HTTP/1.1\r\nCookie: " + b"c" * MAX_HEAD + b"\r\n\r\n")
    assert wire.answer() == (431, "UNSUPPORTED")
    assert wire.requests == 0


def test_long_body_is_no_long_head() -> None:
    wire = Wire()
    size = 3 * MAX_HEAD
    wire.feed(f"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + b"b" * size)
    assert wire.requests > 0
    assert wire.sent == b""


@pytest.mark.parametrize("is_wanted", [True, False])
def test_body_that_nobody_wants_is_read_and_not_kept(is_wanted: bool) -> None:
    wire = Wire()
    wire.feed(b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n")
    assert wire.server.request is not None
    if not is_wanted:
        drop_body(wire.server.request)
    for _ in range(3):
        wire.feed(b"b" * 100)
    received = [command.event for command in wire.commands if isinstance(command, ReceiveHttp)]
    kept = b"".join(event.data for event in received if isinstance(event, RequestData))
    assert kept == (b"b" * 300 if is_wanted else b"")
    assert isinstance(received[-1], RequestEndOfMessage)
    assert len(wire.server.buf) == 0


def test_head_just_below_the_limit_is_taken() -> None:
    wire = Wire()
    head = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nCookie: "
    wire.feed(head + b"c" * (MAX_HEAD - len(head) - 4) + b"\r\n\r\n")
    assert wire.requests > 0
    assert wire.sent == b""


@pytest.mark.parametrize(
    "head", [b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nbad\r\n\r\n", b"\xff\xfe \r\n\r\n", b"a b c d\r\n\r\n"]
)
def test_malformed_head_is_400_in_json(head: bytes) -> None:
    wire = Wire()
    wire.feed(head)
    assert wire.answer() == (400, "NAME_INVALID")
    assert wire.is_closed


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.CONNECT_FAILED, (503, "UNAVAILABLE")),
        (ErrorCode.GENERIC_SERVER_ERROR, (503, "UNAVAILABLE")),
        (ErrorCode.REQUEST_VALIDATION_FAILED, (400, "NAME_INVALID")),
    ],
)
def test_failure_that_mitmproxy_would_tell_as_html_is_json(code: ErrorCode, expected: tuple[int, str]) -> None:
    wire = Wire()
    wire.feed(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    wire.fail(code)
    assert wire.answer() == expected
    assert wire.is_closed


@pytest.mark.parametrize(
    ("headers", "body"),
    [({"Content-Length": "4"}, b"body"), ({"Transfer-Encoding": "chunked"}, b"4\r\nbody\r\n0\r\n\r\n")],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("from_memory", [True, False])
def test_answer_from_memory_goes_out_in_one_piece(headers: dict[str, str], body: bytes, from_memory: bool) -> None:
    wire = Wire()
    wire.feed(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    response = http.Response.make(200, b"body", headers)
    response.headers = http.Headers([(b"X", b"y"), *((k.encode(), v.encode()) for k, v in headers.items())])
    if not from_memory:  # streamed: the head must not wait
        response.content = None
    wire.commands += wire.server.send(ResponseHeaders(1, response, False))
    assert (wire.sent == b"") is from_memory
    wire.commands += wire.server.send(ResponseData(1, b"body"))
    wire.commands += wire.server.send(ResponseEndOfMessage(1))
    head, _, rest = wire.sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nX: y")
    assert rest == body
    wire.feed(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")  # the connection is kept
    assert wire.requests > 1
    assert not wire.is_closed


def test_answer_without_a_body_goes_out_at_once() -> None:
    wire = Wire()
    wire.feed(b"HEAD /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    wire.commands += wire.server.send(ResponseHeaders(1, http.Response.make(200, b""), True))
    assert wire.sent.endswith(b"\r\n\r\n")


def test_nothing_is_told_on_a_connection_that_was_answered_and_closed() -> None:
    wire = Wire()
    wire.feed(b"GET / HTTP/1.1\r\nbad\r\n\r\n")
    sent = wire.sent
    wire.server.conn.state = connection.ConnectionState.CLOSED
    wire.fail(ErrorCode.REQUEST_VALIDATION_FAILED)
    assert wire.sent == sent


def test_http_layer_gets_this_server_wherever_it_is_below() -> None:
    top = layers.modes.HttpProxy(made_context())
    below = HttpLayer(top.context, HTTPMode.regular)
    top.child_layer = below
    install(top)
    assert type(below.connections[top.context.client]) is RegistryHttp1Server


def test_other_layers_are_left_alone() -> None:
    tunnel = layers.TCPLayer(made_context())
    install(tunnel)
    assert not hasattr(tunnel, "connections")


# -- what parsers read in different ways

PLAIN = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAccept: a/b\r\nUser-Agent: docker\r\n\r\n"
UNCLEAR = {
    "folded by a space": PLAIN.replace(b"a/b", b"a/b,\r\n c/d"),
    "folded by a tab": PLAIN.replace(b"a/b", b"a/b\r\n\tc/d"),
    "folded and empty": PLAIN.replace(b"a/b", b"a/b\r\n "),
    "folded first": PLAIN.replace(b"Host: x", b" Host: x"),
    "bare LF": PLAIN.replace(b"a/b\r\n", b"a/b\n"),
    "bare LF at the end": PLAIN.replace(b"docker\r\n\r\n", b"docker\n\n"),
    "bare LF all over": PLAIN.replace(b"\r\n", b"\n"),
    "bare CR": PLAIN.replace(b"a/b", b"a/b\rX: y"),
    "two CR": PLAIN.replace(b"a/b", b"a/b\r"),
    "NUL": PLAIN.replace(b"a/b", b"a\0b"),
    "NUL in a name": PLAIN.replace(b"Accept", b"Acc\0ept"),
    "NUL in the target": PLAIN.replace(b"/v2/", b"/v2/\0"),
    "escape": PLAIN.replace(b"docker", b"\x1b[31mdocker"),
    "vertical tab": PLAIN.replace(b"a/b", b"a\x0bb"),
    "delete": PLAIN.replace(b"a/b", b"a\x7fb"),
    "Accept in Latin-1": PLAIN.replace(b"a/b", b"a/\xfc"),
    "Authorization in Latin-1": PLAIN.replace(b"Accept: a/b", b"authorization: Bearer \xfc"),
    "Range in UTF-8": PLAIN.replace(b"Accept: a/b", b"Range: bytes=\xc3\xbc"),
    "LF before": b"\n" + PLAIN,
    "CR before": b"\r" + PLAIN,
    "many empty lines before": b"\r\n" * 20 + PLAIN,
}


@pytest.mark.parametrize("head", UNCLEAR.values(), ids=UNCLEAR)
@pytest.mark.parametrize("step", [1, 1000])
def test_head_that_is_not_clear_to_everybody_is_400(head: bytes, step: int) -> None:
    wire = Wire()
    for at in range(0, len(head), step):
        wire.feed(head[at : at + step])
    assert wire.answer() == (400, "NAME_INVALID")
    assert wire.is_closed
    assert wire.requests == 0


@pytest.mark.parametrize("head", [PLAIN, PLAIN.replace(b"docker", b"d\xc3\xb6cker \xfc"), b"\r\n" + PLAIN])
@pytest.mark.parametrize("step", [1, 1000])
def test_head_that_is_clear_to_everybody_is_read(head: bytes, step: int) -> None:
    wire = Wire()
    for at in range(0, len(head), step):
        wire.feed(head[at : at + step])
    assert wire.sent == b""
    assert wire.requests > 0


def test_trailers_are_dropped_and_the_next_request_is_read() -> None:
    wire = Wire()
    wire.feed(b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    wire.feed(b"4\r\nbody\r\n0\r\nX-Sum: 1\r\n")
    wire.feed(b"\r\n" + PLAIN)
    received = [command.event for command in wire.commands if isinstance(command, ReceiveHttp)]
    assert [type(event).__name__ for event in received] == ["RequestHeaders", "RequestData", "RequestEndOfMessage"]
    response = http.Response.make(200, b"")
    wire.commands += wire.server.send(ResponseHeaders(1, response, True))
    wire.commands += wire.server.send(ResponseEndOfMessage(1))
    assert wire.requests == 5


def test_trailers_without_an_end_are_refused_at_the_limit() -> None:
    wire = Wire()
    wire.feed(b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
    for _ in range(MAX_HEAD // 1000 + 2):
        wire.feed(b"X: " + b"t" * 995 + b"\r\n")
    assert wire.answer() == (431, "UNSUPPORTED")
    assert wire.is_closed


@pytest.mark.parametrize("target", [b"/v2/", b"*", b"/"])
def test_proxy_takes_no_request_that_names_no_host(target: bytes) -> None:
    wire = Wire()
    wire.server._is_proxy = True
    wire.feed(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: localhost:9000\r\n\r\n")
    assert wire.answer() == (400, "NAME_INVALID")
    assert wire.requests == 0


def test_log_tells_a_part_of_what_a_client_said() -> None:
    wire = Wire()
    wire.feed(b"GET\r\n" + b"X" * 60_000 + b"\r\n\r\n")
    (line,) = [command.message for command in wire.commands if isinstance(command, commands.Log)]
    assert len(line) < 300
