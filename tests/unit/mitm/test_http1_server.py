"""The HTTP/1 server towards clients: bounded heads, and errors as JSON where mitmproxy sends HTML."""

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


class ServerHarness:
    """A server for one client that receives bytes from the test."""

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
        """Return status and code of the answer."""
        head, _, body = self.sent.partition(b"\r\n\r\n")
        assert b"Content-Type: application/json" in head
        assert f"content-length: {len(body)}".encode() in head.lower()
        return int(head.split()[1]), json.loads(body)["errors"][0]["code"]


def test_ordinary_request_is_read() -> None:
    harness = ServerHarness()
    harness.feed(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (harness.requests > 0, harness.sent, harness.is_closed) == (True, b"", False)


@pytest.mark.parametrize("step", [1000, MAX_HEAD + 1, 2 * MAX_HEAD])
def test_head_without_an_end_is_refused_at_the_limit(step: int) -> None:
    harness = ServerHarness()
    harness.feed(b"GET /v2/ HTTP/1.1\r\nCookie: ")
    count = 0
    while not harness.is_closed:
        harness.feed(b"c" * step)
        count += step
        assert count <= MAX_HEAD + 2 * step
    assert harness.answer() == (431, "UNSUPPORTED")
    assert harness.requests == 0


def test_complete_head_that_is_too_long_is_refused() -> None:
    harness = ServerHarness()
    harness.feed(b"GET /v2/ HTTP/1.1\r\nCookie: " + b"c" * MAX_HEAD + b"\r\n\r\n")
    assert harness.answer() == (431, "UNSUPPORTED")
    assert harness.requests == 0


def test_long_body_is_no_long_head() -> None:
    harness = ServerHarness()
    size = 3 * MAX_HEAD
    harness.feed(f"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + b"b" * size)
    assert harness.requests > 0
    assert harness.sent == b""


@pytest.mark.parametrize("is_wanted", [True, False])
def test_unwanted_body_is_read_and_not_kept(is_wanted: bool) -> None:
    harness = ServerHarness()
    harness.feed(b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n")
    assert harness.server.request is not None
    if not is_wanted:
        drop_body(harness.server.request)
    for _ in range(3):
        harness.feed(b"b" * 100)
    received = [command.event for command in harness.commands if isinstance(command, ReceiveHttp)]
    kept = b"".join(event.data for event in received if isinstance(event, RequestData))
    assert kept == (b"b" * 300 if is_wanted else b"")
    assert isinstance(received[-1], RequestEndOfMessage)
    assert len(harness.server.buf) == 0


def test_head_just_below_the_limit_is_taken() -> None:
    harness = ServerHarness()
    head = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nCookie: "
    harness.feed(head + b"c" * (MAX_HEAD - len(head) - 4) + b"\r\n\r\n")
    assert harness.requests > 0
    assert harness.sent == b""


@pytest.mark.parametrize(
    "head", [b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nbad\r\n\r\n", b"\xff\xfe \r\n\r\n", b"a b c d\r\n\r\n"]
)
def test_malformed_head_is_400_in_json(head: bytes) -> None:
    harness = ServerHarness()
    harness.feed(head)
    assert harness.answer() == (400, "NAME_INVALID")
    assert harness.is_closed


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ErrorCode.CONNECT_FAILED, (503, "UNAVAILABLE")),
        (ErrorCode.GENERIC_SERVER_ERROR, (503, "UNAVAILABLE")),
        (ErrorCode.REQUEST_VALIDATION_FAILED, (400, "NAME_INVALID")),
    ],
)
def test_error_of_mitmproxy_is_sent_as_json(code: ErrorCode, expected: tuple[int, str]) -> None:
    harness = ServerHarness()
    harness.feed(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    harness.fail(code)
    assert harness.answer() == expected
    assert harness.is_closed


@pytest.mark.parametrize(
    ("headers", "body"),
    [({"Content-Length": "4"}, b"body"), ({"Transfer-Encoding": "chunked"}, b"4\r\nbody\r\n0\r\n\r\n")],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("from_memory", [True, False])
def test_answer_from_memory_goes_out_in_one_piece(headers: dict[str, str], body: bytes, from_memory: bool) -> None:
    harness = ServerHarness()
    harness.feed(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    response = http.Response.make(200, b"body", headers)
    response.headers = http.Headers([(b"X", b"y"), *((k.encode(), v.encode()) for k, v in headers.items())])
    if not from_memory:  # streamed: the head must not wait
        response.content = None
    harness.commands += harness.server.send(ResponseHeaders(1, response, False))
    assert (harness.sent == b"") is from_memory
    harness.commands += harness.server.send(ResponseData(1, b"body"))
    harness.commands += harness.server.send(ResponseEndOfMessage(1))
    head, _, rest = harness.sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nX: y")
    assert rest == body
    harness.feed(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")  # the connection is kept
    assert harness.requests > 1
    assert not harness.is_closed


def test_answer_without_a_body_goes_out_at_once() -> None:
    harness = ServerHarness()
    harness.feed(b"HEAD /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
    harness.commands += harness.server.send(ResponseHeaders(1, http.Response.make(200, b""), True))
    assert harness.sent.endswith(b"\r\n\r\n")


def test_nothing_is_sent_on_a_closed_connection() -> None:
    harness = ServerHarness()
    harness.feed(b"GET / HTTP/1.1\r\nbad\r\n\r\n")
    sent = harness.sent
    harness.server.conn.state = connection.ConnectionState.CLOSED
    harness.fail(ErrorCode.REQUEST_VALIDATION_FAILED)
    assert harness.sent == sent


def test_http_layer_below_another_gets_this_server() -> None:
    top = layers.modes.HttpProxy(made_context())
    below = HttpLayer(top.context, HTTPMode.regular)
    top.child_layer = below
    install(top)
    assert type(below.connections[top.context.client]) is RegistryHttp1Server


def test_other_layers_are_left_alone() -> None:
    tunnel = layers.TCPLayer(made_context())
    install(tunnel)
    assert not hasattr(tunnel, "connections")


# -- heads that parsers read in different ways

PLAIN = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAccept: a/b\r\nUser-Agent: docker\r\n\r\n"
AMBIGUOUS = {
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


@pytest.mark.parametrize("head", AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("step", [1, 1000])
def test_ambiguous_head_is_400(head: bytes, step: int) -> None:
    harness = ServerHarness()
    for at in range(0, len(head), step):
        harness.feed(head[at : at + step])
    assert harness.answer() == (400, "NAME_INVALID")
    assert harness.is_closed
    assert harness.requests == 0


@pytest.mark.parametrize("head", [PLAIN, PLAIN.replace(b"docker", b"d\xc3\xb6cker \xfc"), b"\r\n" + PLAIN])
@pytest.mark.parametrize("step", [1, 1000])
def test_unambiguous_head_is_read(head: bytes, step: int) -> None:
    harness = ServerHarness()
    for at in range(0, len(head), step):
        harness.feed(head[at : at + step])
    assert harness.sent == b""
    assert harness.requests > 0


def test_trailers_are_dropped_and_the_next_request_is_read() -> None:
    harness = ServerHarness()
    harness.feed(b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    harness.feed(b"4\r\nbody\r\n0\r\nX-Sum: 1\r\n")
    harness.feed(b"\r\n" + PLAIN)
    received = [command.event for command in harness.commands if isinstance(command, ReceiveHttp)]
    assert [type(event).__name__ for event in received] == ["RequestHeaders", "RequestData", "RequestEndOfMessage"]
    response = http.Response.make(200, b"")
    harness.commands += harness.server.send(ResponseHeaders(1, response, True))
    harness.commands += harness.server.send(ResponseEndOfMessage(1))
    assert harness.requests == 5


def test_trailers_without_an_end_are_refused_at_the_limit() -> None:
    harness = ServerHarness()
    harness.feed(b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
    for _ in range(MAX_HEAD // 1000 + 2):
        harness.feed(b"X: " + b"t" * 995 + b"\r\n")
    assert harness.answer() == (431, "UNSUPPORTED")
    assert harness.is_closed


@pytest.mark.parametrize("target", [b"/v2/", b"*", b"/"])
def test_request_without_a_host_is_refused_at_the_proxy(target: bytes) -> None:
    harness = ServerHarness()
    harness.server._is_proxy = True
    harness.feed(b"OPTIONS " + target + b" HTTP/1.1\r\nHost: localhost:9000\r\n\r\n")
    assert harness.answer() == (400, "NAME_INVALID")
    assert harness.requests == 0


def test_request_is_logged_in_part() -> None:
    harness = ServerHarness()
    harness.feed(b"GET\r\n" + b"X" * 60_000 + b"\r\n\r\n")
    (line,) = [command.message for command in harness.commands if isinstance(command, commands.Log)]
    assert len(line) < 300
