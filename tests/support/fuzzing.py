"""A mutation fuzz of untrusted input: request heads, CONNECT requests, challenges, manifests and ranges.

`run` is bounded in time; runs with the same seed begin with the same inputs. A request head that is read without
mitmproxy must be the same request to mitmproxy's parser and to h11. Parsers may raise only the errors that they
declare.
"""

import contextlib
import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer  # mitmproxy reads request heads with it
from hubcache.direct.request_head import RequestHead
from hubcache.mitm.http1_server import RegistryHttp1Server, find_ambiguity
from hubcache.mitm.interception import Interception
from hubcache.mitm.tunnel import Connects
from hubcache.oci.errors import ManifestInvalid, RangeInvalid, RegistryError
from hubcache.oci.manifest import parse_manifest
from hubcache.oci.media import normalize_accept
from hubcache.oci.reference import parse_range, parse_target
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.serve.client_platform import platform_of
from hubcache.transfer.challenge import Challenge
from hubcache.transfer.upstream_response import content_range
from mitmproxy import connection, options
from mitmproxy.net.http import http1
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, context, events

_TABLE = Interception([Registry.parse(HUB_HOST), Registry.parse("[::1]:5001=https://[::1]:5001")])
CONNECTS = Connects(_TABLE)

REQUESTS = [
    b"GET /v2/library/app/manifests/1?ns=docker.io HTTP/1.1\r\nHost: x\r\nAccept: a/b, c/d;q=0\r\n\r\n",
    b"HEAD /v2/ HTTP/1.1\r\nHost: registry-1.docker.io\r\nUser-Agent: docker/28\r\nConnection: close\r\n\r\n",
    b"PUT /v2/a/blobs/u/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX: y\r\n\r\n",
    b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbodyGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer x\r\nRange: bytes=0-\r\n\r\n",
]
CONNECT_HEADS = [
    b"CONNECT registry-1.docker.io:443 HTTP/1.1\r\nHost: registry-1.docker.io:443\r\nUser-Agent: docker\r\n\r\n",
    b"CONNECT auth.docker.io:443 HTTP/1.0\r\n\r\n",
    b"CONNECT [::1]:5001 HTTP/1.1\r\nHost: [::1]:5001\r\nProxy-Connection: Keep-Alive\r\n\r\n",
]
_HEAD_WORDS = [
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n ",
        b"\r\n\t",
        b"\n\n",
        b" ",
        b"\t",
        b":",
        b" :",
        b"\0",
        b"\x0b",
        b"\x0c",
        b"\x85",
        b"\xff",
    ),
    *(b"Host: y\r\n", b"Content-Length: 5\r\n", b"Content-Length: 5, 5\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(
        b"Transfer-Encoding: xchunked\r\n",
        b"transfer-encoding : chunked\r\n",
        b"Connection: close, te\r\n",
        b"TE: trailers\r\n",
    ),
    *(
        b"Expect: 100-continue\r\n",
        b"Upgrade: h2c\r\n",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/0.9",
        b"GET ",
        b"CONNECT ",
        b"PRI * ",
    ),
    *(
        b"http://",
        b"//",
        b"@",
        b"?",
        b"#",
        b"%00",
        b"..",
        b"*",
        b"0x5",
        b"+5",
        b"-5",
        b"443",
        b"00443",
        b"\xc2\xa0",
        b"99999",
    ),
]
_TEXT_WORDS = [
    *(
        "Bearer ",
        "realm=",
        '"',
        '\\"',
        ",",
        "=",
        " ",
        "\t",
        "\r\n",
        "\0",
        "é",
        "٣",
        "²",
        "\udcff",
        "https://[",
        "://",
        ":",
    ),
    *(
        "bytes",
        "bytes=",
        "-",
        "/",
        "*",
        "9" * 5000,
        "-1",
        "0x1",
        "1e9",
        ";q=0",
        "%",
        "%ff",
        "%00",
        "/v2/",
        "sha256:",
        "..",
    ),
]
_JSON_WORDS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b"[" * 3000,
        b'{"a":' * 3000,
        b'"',
        b",",
        b":",
        b"null",
        b"true",
        b"-1",
        b"1e999",
        b"NaN",
    ),
    *(
        b"9" * 5000,
        b"\xff",
        b"\\ud800",
        b'"layers"',
        b'"manifests"',
        b'"config"',
        b'"digest"',
        b'"size"',
        b'"platform"',
        b"\0",
    ),
]
_DIGEST = "sha256:" + "0" * 64
_TEXTS = [
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull"',
    *("bytes 10-99/100", "bytes 10-99/*", "bytes=0-99", "bytes=-5", "bytes=5-"),
    *("/v2/library/app/manifests/1", f"/v2/library/app/blobs/{_DIGEST}", "/v2/a/blobs/uploads/x?digest=y"),
    *("application/vnd.oci.image.index.v1+json, */*;q=0.5", "docker/29 os/linux arch/amd64 UpstreamClient(x)"),
]
_MANIFESTS = [
    b'{"schemaVersion":2,"config":{"digest":"%s","size":1},"layers":[{"digest":"%s","size":2}]}'
    % ((_DIGEST.encode(),) * 2),
    b'{"manifests":[{"digest":"%s","size":1,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}'
    % _DIGEST.encode(),
]


# -- three parsers read a head alike


def agree_on_request(data: bytes) -> bool:
    """Whether a request is read without mitmproxy; fails when another parser reads it differently."""
    asked = RequestHead.parse(data)
    if asked is None:
        return False
    head, buffer = data[: asked.length], ReceiveBuffer()
    buffer += data
    lines = buffer.maybe_extract_lines()
    assert lines, data
    found = http1.read_request_head([bytes(line) for line in lines])
    validate_headers(found)
    assert bytes(buffer) == data[asked.length :], data
    assert http1.expected_http_body_size(found) == 0, data
    assert (found.method, found.http_version, found.authority) == (asked.method, "HTTP/1.1", ""), data
    assert found.path.partition("?")[::2] == (asked.path, asked.query), data
    assert {name.lower(): value for name, value in found.headers.items()} == asked.headers, data
    assert http1.connection_close(found.http_version, {"connection": asked.headers.get("connection", "").lower()}) is (
        asked.is_last
    ), data
    third = _read_by_h11(data)
    target = asked.path + (f"?{asked.query}" if b"?" in head.split(b" ")[1] else "")
    assert (third.method, third.target, third.http_version) == (asked.method.encode(), target.encode(), b"1.1"), data
    assert _joined(third) == asked.headers, data
    assert find_ambiguity(head) is None, data
    return True


def agree_on_connect(data: bytes) -> bool:
    """Whether a CONNECT is answered without mitmproxy; fails when another parser reads it differently."""
    found = CONNECTS.parse(data)
    if found is None:
        return False
    (host, port), length = found
    buffer = ReceiveBuffer()
    buffer += data
    lines = buffer.maybe_extract_lines()
    assert lines, data
    other = http1.read_request_head([bytes(line) for line in lines])
    validate_headers(other)
    assert bytes(buffer) == data[length:], data
    assert http1.expected_http_body_size(other) == 0, data
    assert (other.method.upper(), other.host.lower(), other.port) == ("CONNECT", host.lower(), port), data
    first, _, rest = data[:length].upper().partition(b"\r\n")
    if rest.startswith(b"HOST:") or b"\nHOST:" in rest or first.endswith(b" HTTP/1.0"):  # h11 rejects the others
        third = _read_by_h11(data)
        name, _, number = third.target.decode().rpartition(":")
        assert (third.method.upper(), name.strip("[]"), int(number)) == (b"CONNECT", host, port), data
    return True


def _read_by_h11(data: bytes) -> h11.Request:
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    server.receive_data(data)
    event = server.next_event()
    assert isinstance(event, h11.Request), data
    return event


def _joined(request: h11.Request) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in request.headers:
        key, text = name.decode().lower(), value.decode()
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def serve(data: bytes) -> None:
    """Pass data to the HTTP/1 server; it may accept or reject the data, and must not raise."""
    client = connection.Client(
        peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=1.0, state=connection.ConnectionState.OPEN
    )
    server = RegistryHttp1Server(context.Context(client, options.Options()))
    for event in (events.Start(), events.DataReceived(client, data), events.DataReceived(client, b"\r\n")):
        sent = b"".join(each.data for each in server.handle_event(event) if isinstance(each, commands.SendData))
        assert not sent or sent.startswith(b"HTTP/1.1 4"), data


# -- parsers raise the errors that they declare, and no others


def _manifest(data: bytes) -> None:
    with contextlib.suppress(ManifestInvalid):
        parse_manifest(data)


def _challenge(text: str) -> None:
    found = Challenge.parse(text)
    assert found is None or found.realm, text
    Challenge.parse(found.render() if found else None)


def _ranges(text: str) -> None:
    response: Any = SimpleNamespace(headers={"Content-Range": text})
    start, size = content_range(response)
    assert start >= -1
    assert size is None or size >= 0
    with contextlib.suppress(RangeInvalid):
        part = parse_range(text, 1000)
        assert part is None or 0 <= part.start < part.end <= 1000


def _words(text: str) -> None:
    with contextlib.suppress(RegistryError):
        parse_target(text)
    assert len(normalize_accept(text)) < 10_000
    assert len(platform_of(text)) < 30


def _text(of: Callable[[str], None]) -> Callable[[bytes], None]:
    return lambda data: of(data.decode("utf-8", "surrogateescape"))


def _bytes(texts: list[str]) -> list[bytes]:
    return [text.encode("utf-8", "surrogateescape") for text in texts]


TARGETS: list[tuple[Callable[[bytes], object], list[bytes], list[bytes]]] = [
    (agree_on_request, REQUESTS, _HEAD_WORDS),
    (agree_on_connect, CONNECT_HEADS, _HEAD_WORDS),
    (serve, REQUESTS + CONNECT_HEADS, _HEAD_WORDS),
    (_manifest, _MANIFESTS, _JSON_WORDS),
    (_text(_challenge), _bytes(_TEXTS), _bytes(_TEXT_WORDS)),
    (_text(_ranges), _bytes(_TEXTS), _bytes(_TEXT_WORDS)),
    (_text(_words), _bytes(_TEXTS), _bytes(_TEXT_WORDS)),
]


def mutated(chance: random.Random, samples: list[bytes], words: list[bytes]) -> bytes:
    """One of the samples with up to four random changes."""
    data = chance.choice(samples)
    for _ in range(chance.randint(0, 4)):
        at = chance.randint(0, len(data))
        until = min(len(data), at + chance.choice((0, 1, 2, 8, 64)))
        match chance.randrange(5):
            case 0:
                data = data[:at] + chance.choice(words) + data[at:]
            case 1:
                data = data[:at] + chance.choice(words) + data[until:]
            case 2:
                data = data[:at] + data[until:]
            case 3:
                data = data[:until] + data[at:]
            case _:
                data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    return data


def run(seed: int, seconds: float) -> int:
    """Fuzz for `seconds`; returns the number of inputs.

    Ends with the first error that a target raises, which gets a note that names the input."""
    chance, tried, until = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        target, samples, words = TARGETS[tried % len(TARGETS)]
        data = mutated(chance, samples, words)
        try:
            target(data)
        except Exception as error:
            error.add_note(f"seed {seed}, input {tried}: {data[:2000]!r}")
            raise
        tried += 1
    return tried
