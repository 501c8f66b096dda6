"""Request heads of direct connections: those that all parsers read alike and that need an answer and no more."""

import string

import pytest
from h11._receivebuffer import ReceiveBuffer  # what mitmproxy takes heads from
from hubcache.direct.request_head import RequestHead
from hypothesis import event, given, settings
from hypothesis import strategies as st
from mitmproxy.net.http import http1
from mitmproxy.net.http.validate import validate_headers
from support.http_client import head

ORDINARY = (
    b"GET /v2/library/app/manifests/1?ns=docker.io HTTP/1.1\r\n"
    b"Host: registry-1.docker.io\r\nUser-Agent: docker/28 go/1.24 (linux)\r\nAccept: a/b\r\n\r\n"
)
LIMIT = 16 << 10


def parse_get(**headers: str) -> RequestHead | None:
    """Parse a GET with these headers and `Host`; underscores in names stand for hyphens."""
    fields = {"Host": "registry-1.docker.io"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestHead.parse(head("GET", "/v2/", fields))


def changed(old: bytes, new: bytes) -> bytes:
    assert ORDINARY.count(old) == 1
    return ORDINARY.replace(old, new)


# -- heads that are parsed


def test_head_is_parsed() -> None:
    headers = {"host": "registry-1.docker.io", "user-agent": "docker/28 go/1.24 (linux)", "accept": "a/b"}
    expected = RequestHead("GET", "/v2/library/app/manifests/1", "ns=docker.io", headers, len(ORDINARY))
    assert RequestHead.parse(ORDINARY) == expected


def test_method_may_be_head() -> None:
    asked = RequestHead.parse(changed(b"GET", b"HEAD"))
    assert asked is not None
    assert asked.method == "HEAD"


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", ""),
        (b"/v2/?", "/v2/", ""),
        (b"/v2/?a=b?c=d", "/v2/", "a=b?c=d"),
        (b"//v2/", "//v2/", ""),
        (b'/v2/%2e%2E/"<>\\^`{|}#x', '/v2/%2e%2E/"<>\\^`{|}#x', ""),
    ],
)
def test_target_is_unchanged_and_split_at_the_first_question_mark(target: bytes, path: str, query: str) -> None:
    asked = RequestHead.parse(changed(b"/v2/library/app/manifests/1?ns=docker.io", target))
    assert asked is not None
    assert (asked.path, asked.query) == (path, query)


@pytest.mark.parametrize("rest", [ORDINARY, b"GET /v2/ HTTP/1.1\r\nHo", b"\x16\x03\xff", b"\r\n"])
def test_length_is_that_of_the_first_head(rest: bytes) -> None:
    alone, followed = RequestHead.parse(ORDINARY), RequestHead.parse(ORDINARY + rest)
    assert alone == followed
    assert alone is not None
    assert alone.length == len(ORDINARY)


def test_repeated_headers_are_one_list_in_their_order() -> None:
    asked = RequestHead.parse(changed(b"Accept: a/b", b"Accept: a/b\r\naccept:\r\nACCEPT: c/d, e/f"))
    assert asked is not None
    assert asked.headers["accept"] == "a/b, , c/d, e/f"


@pytest.mark.parametrize("value", [b"a/b", b"\ta/b", b"  a/b \t "])
def test_white_space_around_a_value_is_removed(value: bytes) -> None:
    asked = RequestHead.parse(changed(b" a/b", value))
    assert asked is not None
    assert asked.headers["accept"] == "a/b"


@pytest.mark.parametrize(
    ("value", "is_last"),
    [(None, False), ("keep-alive", False), ("Keep-Alive", False), ("", False), ("close", True), ("Close", True)],
)
def test_connection_is_kept_unless_the_client_says_otherwise(value: str | None, is_last: bool) -> None:
    asked = parse_get() if value is None else parse_get(Connection=value)
    assert asked is not None
    assert asked.is_last is is_last


# -- heads that are left to mitmproxy


@pytest.mark.parametrize(
    "header",
    [
        {"Content_Length": "0"},
        {"Content_Length": "5"},
        {"Transfer_Encoding": "chunked"},
        {"TRANSFER_ENCODING": "identity"},
        {"Trailer": "x"},
        {"TE": "trailers"},
        {"Expect": "100-continue"},
        {"Upgrade": "h2c"},
        {"Connection": "upgrade"},
        {"Connection": "close, te"},
        {"Connection": "keep-alive, close"},
        {"Connection": "x-secret"},
    ],
    ids=lambda header: "=".join(*header.items()),
)
def test_request_that_needs_more_than_an_answer_is_unusual(header: dict[str, str]) -> None:
    assert parse_get(Accept="a/b") is not None
    assert parse_get(**header) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        changed(b"GET", b"PUT"),
        changed(b"GET", b"POST"),
        changed(b"GET", b"DELETE"),
        changed(b"GET", b"get"),
        changed(b"GET", b" GET"),
        changed(b"GET ", b"GET  "),
        changed(b"GET ", b"GET\t"),
        changed(b" HTTP/1.1", b" HTTP/1.0"),
        changed(b" HTTP/1.1", b" HTTP/2.0"),
        changed(b" HTTP/1.1", b""),
        changed(b" HTTP/1.1", b" HTTP/1.1 "),
        changed(b"/v2/library", b"https://registry-1.docker.io/v2/library"),
        changed(b"/v2/library", b"v2/library"),
        changed(b"/v2/library/app/manifests/1?ns=docker.io", b"*"),
        changed(b"library", b"lib rary"),
        changed(b"library", b"lib\xc3\xa4ry"),
        changed(b"library", b"lib\0rary"),
        changed(b"Host: registry-1.docker.io\r\n", b""),
        changed(b"Host: registry-1.docker.io\r\nUser-Agent: docker/28 go/1.24 (linux)\r\nAccept: a/b\r\n", b""),
        changed(b"docker/28", b"d\xc3\xb6cker"),
        changed(b"docker/28", b"docker\0"),
        changed(b"docker/28", b"docker\x7f"),
        changed(b"docker/28", b"docker\r"),
        changed(b"docker/28", b"docker\x0b"),
        changed(b"docker/28 ", b"docker/28\r\n "),
        changed(b"docker/28 ", b"docker/28\r\n\t"),
        changed(b"User-Agent:", b"User Agent:"),
        changed(b"User-Agent:", b"User-Agent :"),
        changed(b"User-Agent:", b"User-Agent"),
        changed(b"User-Agent:", b":"),
        changed(b"User-Agent", b"\xdcser-Agent"),
        changed(b"\r\nHost", b"\nHost"),
        changed(b"\r\nAccept", b"\nAccept"),
        changed(b"\r\n\r\n", b"\n\n"),
        changed(b"\r\n\r\n", b"\r\n\n"),
        b"\r\n" + ORDINARY,
        ORDINARY.replace(b"\r\n", b"\n"),
    ],
)
def test_other_heads_are_unusual(data: bytes) -> None:
    assert RequestHead.parse(data) is None


@pytest.mark.parametrize("length", range(len(ORDINARY)))
def test_incomplete_head_is_not_parsed(length: int) -> None:
    assert RequestHead.parse(ORDINARY[:length]) is None


@pytest.mark.parametrize(("size", "is_parsed"), [(LIMIT, True), (LIMIT + 1, False), (1 << 20, False)])
@pytest.mark.parametrize("where", ["in one header", "in many", "in the target"])
def test_head_has_a_limit(size: int, where: str, is_parsed: bool) -> None:
    missing = size - len(ORDINARY)
    if where == "in one header":
        data = changed(b"a/b", b"a/b" + b"x" * missing)
    elif where == "in many":
        count, rest = divmod(missing, 4)
        data = changed(b"a/b\r\n", b"a/b" + b"x" * rest + b"\r\n" + b"a:\r\n" * count)
    else:
        data = changed(b"docker.io ", b"docker.io" + b"x" * missing + b" ")
    assert len(data) == size
    assert (RequestHead.parse(data + ORDINARY) is not None) is is_parsed


# -- generated heads

TOKEN = "!#$%&'*+.^_`|~-" + string.digits + string.ascii_letters
UNUSUAL = ("connection", "content-length", "expect", "te", "trailer", "transfer-encoding", "upgrade")
SHORT = 12
targets = st.text(string.printable[:94], max_size=SHORT).map(lambda text: f"/{text}")
names = st.sampled_from(["Host", "host", "Accept", "Connection"]) | st.text(TOKEN, min_size=1, max_size=SHORT)
names |= st.sampled_from([*UNUSUAL])
values = st.sampled_from(["close", "keep-alive", "0", "", "a, b"]) | st.text(
    " \t" + string.printable[:94], max_size=SHORT
)
lines = st.lists(st.tuples(names, values), max_size=2)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Heads most of which are well-formed; some are left to mitmproxy."""
    begin = [f"{draw(st.sampled_from(['GET', 'HEAD', 'PUT']))} {draw(targets)} HTTP/1.1"]
    fields = [f"{name}:{value}" for name, value in [*draw(lines), ("Host", "example.com"), *draw(lines)]]
    return "\r\n".join([*begin, *fields, "\r\n"]).encode()


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """Heads with a few bytes replaced."""
    whole = draw(heads())
    at = draw(st.integers(0, len(whole)))
    until = draw(st.integers(at, min(len(whole), at + 3)))
    pieces = st.sampled_from([b"", b"\r", b"\n", b"\r\n", b"\r\n ", b" ", b"\t", b":", b"\0", b"\x0b", b"\x85", b"?"])
    return whole[:at] + draw(pieces | st.binary(max_size=3)) + whole[until:]


@given(heads() | spoilt() | st.binary(max_size=200), st.binary(max_size=20))
@settings(max_examples=400)
def test_head_is_parsed_as_by_mitmproxy(data: bytes, rest: bytes) -> None:
    """Both also agree on the end of the head: a difference would let a client hide a request."""
    asked = RequestHead.parse(data + rest)
    event("parsed" if asked is not None else "left to mitmproxy")
    if asked is None:
        return
    buffer = ReceiveBuffer()
    buffer += data + rest
    extracted = buffer.maybe_extract_lines()
    assert extracted is not None
    found = http1.read_request_head([bytes(line) for line in extracted])
    validate_headers(found)
    assert bytes(buffer) == (data + rest)[asked.length :]
    assert http1.expected_http_body_size(found) == 0
    assert (found.method, found.http_version, found.authority) == (asked.method, "HTTP/1.1", "")
    assert found.path.partition("?")[::2] == (asked.path, asked.query)
    assert {name.lower(): value for name, value in found.headers.items()} == asked.headers


@given(lines, targets)
def test_ordinary_request_is_parsed_with_any_target_and_headers(fields: list[tuple[str, str]], target: str) -> None:
    usual = {name: value for name, value in fields if name.lower() not in (*UNUSUAL, "host")}
    asked = RequestHead.parse(head("HEAD", target, {"Host": "example.com"} | usual))
    assert asked is not None
    assert asked.path + "?" + asked.query in (target, f"{target}?")
    assert set(asked.headers) == {"host", *map(str.lower, usual)}


@given(st.lists(heads(), min_size=1, max_size=4))
def test_pipelined_requests_are_parsed_one_by_one(many: list[bytes]) -> None:
    alone = [RequestHead.parse(one) for one in many]
    rest, read = b"".join(many), []
    while (asked := RequestHead.parse(rest)) is not None:
        read.append(asked)
        rest = rest[asked.length :]
    whole = alone[: alone.index(None)] if None in alone else alone
    assert read == whole
