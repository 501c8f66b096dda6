"""The head of an answer has the headers that mitmproxy's response has, and can be parsed."""

import http.client
import io
import string

import pytest
from hubcache.direct.answer_head import answer_head
from hubcache.mitm import flow_headers
from hubcache.serve.messages import Answer, Result
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(string.ascii_letters + "-", min_size=1, max_size=20).map(lambda name: f"X-{name}")
VALUES = st.text(st.characters(min_codepoint=0x21, exclude_categories=["Cs"]), max_size=30)


def parse(head: bytes) -> tuple[int, list[tuple[str, str]]]:
    """Return status and headers, in lower case and sorted."""
    stream = io.BytesIO(head)
    status = int(stream.readline().split()[1])
    message = http.client.parse_headers(stream)
    assert stream.read() == b""
    return status, sorted((name.lower(), value) for name, value in message.items())


@given(
    st.sampled_from([200, 206, 304, 307, 400, 404, 416, 429, 502, 599]),
    st.dictionaries(NAMES, VALUES, max_size=5).filter(lambda each: len({name.lower() for name in each}) == len(each)),
    st.integers(0, 1 << 40),
    st.booleans(),
)
def test_head_has_the_headers_of_the_answer(status: int, headers: dict[str, str], length: int, close: bool) -> None:
    answer = Answer(status, headers, Result.HIT, length=length)
    made = flow_headers.headers(answer)
    if close:
        made["Connection"] = "close"
    wanted = sorted((name.decode().lower(), value.decode("latin-1")) for name, value in made.fields)
    assert parse(answer_head(answer, close=close)) == (status, wanted)
    assert answer.headers == headers, "the answer may be sent again"


def test_length_replaces_one_of_the_answer() -> None:
    answer = Answer(200, {"Content-Length": "1"}, Result.HIT, length=2)
    assert parse(answer_head(answer, close=False)) == (200, [("content-length", "2")])


@pytest.mark.parametrize(("status", "line"), [(200, b"HTTP/1.1 200 OK\r\n"), (599, b"HTTP/1.1 599 \r\n")])
def test_status_line_has_the_usual_phrase(status: int, line: bytes) -> None:
    assert answer_head(Answer(status, {}, Result.HIT), close=False).startswith(line)
