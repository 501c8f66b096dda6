"""Heads that are read without mitmproxy are the same request to others: to mitmproxy, which may be handed the next one
of the connection, and to h11 as a third opinion."""

import string

import pytest
from hubcache.mitm.http1_server import find_ambiguity
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support import fuzzing

REQUEST = b"GET /v2/ HTTP/1.1\r\nHost: registry-1.docker.io\r\nAccept: a/b\r\n\r\n"
CONNECT = b"CONNECT registry-1.docker.io:443 HTTP/1.1\r\nHost: registry-1.docker.io:443\r\nX: a/b\r\n\r\n"
TRICKS = {
    "space before the colon": (b"Host:", b"Host :"),
    "tab before the colon": (b"Host:", b"Host\t:"),
    "folded": (b"a/b", b"a/b\r\n c"),
    "folded by a tab": (b"a/b", b"a/b\r\n\tc"),
    "bare LF": (b"a/b\r\n", b"a/b\n"),
    "bare CR": (b"a/b", b"a\rb"),
    "CR CR LF": (b"a/b\r\n", b"a/b\r\r\n"),
    "LF CR": (b"a/b\r\n", b"a/b\n\r"),
    "NUL": (b"a/b", b"a\0b"),
    "form feed": (b"a/b", b"a\x0cb"),
    "next line": (b"a/b", b"a\x85b"),
    "no-break space": (b"a/b", b"\xc2\xa0a/b"),
    "two hosts": (b"Host:", b"Host: evil.example\r\nHost:"),
    "two hosts of other case": (b"Host:", b"hOST: evil.example\r\nHost:"),
    "two hosts that are equal": (b"Host:", b"Host: registry-1.docker.io\r\nHost:"),
    "length": (b"a/b", b"a/b\r\nContent-Length: 5"),
    "length of nothing": (b"a/b", b"a/b\r\nContent-Length: 0"),
    "lengths": (b"a/b", b"a/b\r\nContent-Length: 0\r\nContent-Length: 5"),
    "length and coding": (b"a/b", b"a/b\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"),
    "coding": (b"a/b", b"a/b\r\nTransfer-Encoding: chunked"),
    "coding of other case": (b"a/b", b"a/b\r\ntRANSFER-eNCODING: chunked"),
    "coding after a tab": (b"a/b", b"a/b\r\nTransfer-Encoding:\tchunked"),
    "coding with a control": (b"a/b", b"a/b\r\nTransfer-Encoding: \x0bchunked"),
    "coding, folded": (b"a/b", b"a/b\r\nTransfer-Encoding:\r\n chunked"),
    "coding with an underscore": (b"a/b", b"a/b\r\nTransfer_Encoding: chunked"),
    "no name": (b"a/b", b"a/b\r\n: x"),
    "no colon": (b"a/b", b"a/b\r\nx"),
    "first line again": (b"a/b", b"a/b\r\nGET / HTTP/1.1"),
    "version 1.0": (b"HTTP/1.1", b"HTTP/1.0"),
    "version 1.2": (b"HTTP/1.1", b"HTTP/1.2"),
    "version 2": (b"HTTP/1.1", b"HTTP/2.0"),
    "version in lower case": (b"HTTP/1.1", b"http/1.1"),
    "no version": (b" HTTP/1.1", b""),
    "two spaces": (b" HTTP/1.1", b"  HTTP/1.1"),
    "tab for a space": (b" HTTP/1.1", b"\tHTTP/1.1"),
    "space at the end": (b" HTTP/1.1", b" HTTP/1.1 "),
    "upgrade": (b"a/b", b"a/b\r\nConnection: upgrade\r\nUpgrade: h2c"),
    "connection names a header": (b"a/b", b"a/b\r\nConnection: close, host"),
    "two connections": (b"a/b", b"a/b\r\nConnection: close\r\nConnection: keep-alive"),
    "expectation": (b"a/b", b"a/b\r\nExpect: 100-continue"),
}


@pytest.mark.parametrize("behind", [b"", b"GET / HTTP/1.1\r\nHost: y\r\n\r\n", b"\r\n", b"\x16\x03"])
@pytest.mark.parametrize(("old", "new"), TRICKS.values(), ids=TRICKS)
def test_known_trick_is_read_alike_by_all_parsers_or_left_to_mitmproxy(old: bytes, new: bytes, behind: bytes) -> None:
    for ordinary, agree in ((REQUEST, fuzzing.agree_on_request), (CONNECT, fuzzing.agree_on_connect)):
        assert agree(ordinary + behind)
        for count in (1, -1):
            agree(ordinary.replace(old, new, count) + behind)


@pytest.mark.parametrize("trick", ["two hosts", "two hosts of other case", "two hosts that are equal"])
def test_request_with_two_hosts_is_refused(trick: str) -> None:
    """RFC 9112 section 3.2."""
    old, new = TRICKS[trick]
    assert find_ambiguity(REQUEST.replace(old, new)) is not None
    assert not fuzzing.agree_on_request(REQUEST.replace(old, new))
    assert not fuzzing.agree_on_connect(CONNECT.replace(old, new))


TOKEN = "!#$%&'*+.^_`|~-" + string.digits + string.ascii_letters
names = st.sampled_from(
    ["Host", "Accept", "Connection", "Content-Length", "Transfer-Encoding", "Expect", "TE", "Upgrade", "Cookie"]
) | st.text(TOKEN, min_size=1, max_size=10)
values = st.sampled_from(["close", "keep-alive", "0", "chunked", "", "a, b"]) | st.text(
    "".join(map(chr, range(256))), max_size=12
)
spoilers = st.lists(st.sampled_from(fuzzing._HEAD_WORDS), max_size=2)


@st.composite
def heads(draw: st.DrawFn, first: st.SearchStrategy[bytes]) -> bytes:
    """Heads some of which have odd bytes in them."""
    fields = draw(st.lists(st.tuples(names, values), max_size=3))
    lines = [draw(first), b"Host: x", *(f"{name}: {value}".encode("latin-1") for name, value in fields)]
    data = b"\r\n".join(lines) + b"\r\n\r\n"
    for word in draw(spoilers):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + word + data[at:]
    return data + draw(st.binary(max_size=5))


targets = st.text("".join(map(chr, range(33, 127))), max_size=12).map(lambda text: f"/{text}")
requests = st.builds(
    lambda method, path: f"{method} {path} HTTP/1.1".encode(), st.sampled_from(["GET", "HEAD"]), targets
)
hosts = st.sampled_from(["registry-1.docker.io", "REGISTRY-1.docker.io", "auth.docker.io", "[::1]", "example.com"])
ports = st.sampled_from(["443", "0443", "5001", "80", "70000", ""])
connects = st.builds(
    lambda host, port, minor: f"CONNECT {host}:{port} HTTP/1.{minor}".encode(), hosts, ports, st.integers(0, 1)
)


@given(heads(requests))
@settings(max_examples=1500, deadline=None)
def test_all_parsers_read_the_same_request(data: bytes) -> None:
    event("read" if fuzzing.agree_on_request(data) else "left to mitmproxy")


@given(heads(connects))
@settings(max_examples=1500, deadline=None)
def test_all_parsers_read_the_same_connect(data: bytes) -> None:
    event("read" if fuzzing.agree_on_connect(data) else "left to mitmproxy")
