"""Frames between owner and worker are read as they were written."""

import asyncio

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.registry import Registry
from hubcache.operate.served_request import ServedRequest
from hubcache.serve.messages import Answer, Change, Forward, Listener, Request, Result
from hubcache.workers.frames import (
    frame,
    pack_outcome,
    pack_request,
    pack_served_request,
    read_frame,
    unpack_outcome,
    unpack_request,
    unpack_served_request,
)
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.dictionaries(st.text(max_size=10), st.text(max_size=20), max_size=3)
REGISTRY = Registry.parse("registry-1.docker.io=http://localhost:5001")


async def passed_on(data: bytes) -> tuple[list[object], bytes]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return await read_frame(reader)


@given(st.builds(
    Request,
    method=st.sampled_from(["GET", "HEAD", "POST"]),
    path=st.text(max_size=30),
    registry=st.just(REGISTRY),
    listener=st.sampled_from(Listener),
    headers=NAMES,
    query=st.text(max_size=10),
    client=st.text(max_size=10),
    to_token_service=st.booleans(),
    body=st.none() | st.binary(max_size=100),
))  # fmt: skip
def test_request_is_equal_after_packing_and_unpacking(request: Request) -> None:
    head, body = pack_request(request)
    (received,), payload = asyncio.run(passed_on(frame([head], body)))
    assert isinstance(received, list)
    assert unpack_request(received, payload) == request


@given(st.none() | st.builds(
    Forward,
    authorization=st.none() | st.text(max_size=20),
    change=st.none() | st.builds(Change, st.text(max_size=10), st.text(max_size=10), st.booleans()),
    kind=st.text(max_size=5),
    token_wait=st.floats(0, 10),
) | st.builds(
    Answer,
    status=st.integers(200, 599),
    headers=NAMES,
    result=st.sampled_from(Result),
    body=st.binary(max_size=100),
    source=st.none(),
    length=st.integers(0, 1 << 40),
    size=st.integers(0, 1 << 40),
    kind=st.text(max_size=5),
    is_private=st.booleans(),
    token_wait=st.floats(0, 10),
    error=st.text(max_size=5),
    is_repeated=st.booleans(),
    content=st.none() | st.binary(max_size=5).map(Digest.of),
))  # fmt: skip
def test_outcome_is_equal_after_packing_and_unpacking(outcome: Answer | Forward | None) -> None:
    head, body = pack_outcome(outcome)
    (received,), payload = asyncio.run(passed_on(frame([head], body)))
    assert isinstance(received, list)
    assert unpack_outcome(received, payload) == outcome


@given(st.builds(
    ServedRequest,
    ended=st.floats(0, 1e10),
    client=st.text(max_size=10),
    listener=st.sampled_from(Listener),
    kind=st.text(max_size=5),
    result=st.sampled_from(Result),
    status=st.integers(0, 599),
    registry=st.text(max_size=10),
    repository=st.text(max_size=10),
    reference=st.text(max_size=10),
    size=st.integers(0, 1 << 40),
    sent=st.integers(0, 1 << 40),
    first_byte=st.floats(0, 1e10),
    duration=st.floats(0, 1e10),
    is_complete=st.booleans(),
    is_private=st.booleans(),
    method=st.text(max_size=5),
    source_wait=st.floats(0, 1e10),
    client_wait=st.floats(0, 1e10),
    token_wait=st.floats(0, 1e10),
    is_repeated=st.booleans(),
))  # fmt: skip
def test_served_request_is_equal_after_packing_and_unpacking(request: ServedRequest) -> None:
    ((received,),), _ = asyncio.run(passed_on(frame([[pack_served_request(request)]])))
    assert unpack_served_request(received) == request


async def test_end_within_a_frame_raises() -> None:
    for length in range(1, len(whole := frame(["a"], b"payload"))):
        with pytest.raises(asyncio.IncompleteReadError):
            await passed_on(whole[:length])
