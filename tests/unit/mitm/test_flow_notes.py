"""Notes on flows: written by this program alone, completed when the flow ends, and never over the user's own."""

import time

import pytest
from hubcache.mitm.flow_markers import STANDARD_NAMES, Marker, add_names
from hubcache.mitm.flow_notes import RESPONSE_SIZE, FlowNotes, counted, is_changed_by_user
from hubcache.oci.errors import BadUpstream, HubcacheError, StorageError
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.serve.messages import Answer, Forward, Listener, Request, Result
from mitmproxy.flow import Error
from mitmproxy.http import HTTPFlow, Response
from support.mitm import tflow

HIT = Answer(200, {"Cache-Status": "hubcache; hit"}, Result.HIT)
PUSH = Request("PUT", "/v2/a/manifests/1", Registry(HUB_HOST, f"https://{HUB_HOST}"), Listener.PROXY, {})


@pytest.fixture
def notes() -> FlowNotes:
    return FlowNotes(add_names({}))


def running_flow(seconds: float = 2.0) -> HTTPFlow:
    """A flow whose request began some time ago."""
    flow = tflow.tflow()
    flow.request.timestamp_start = time.time() - seconds
    return flow


def respond(flow: HTTPFlow, status: int = 200, body: bytes = b"x" * 1500) -> HTTPFlow:
    flow.response = Response.make(status, body)
    return flow


def test_answer_in_memory_has_its_size_and_duration(notes: FlowNotes) -> None:
    flow = running_flow()
    notes.answered(flow, HIT, HUB_HOST)
    assert (flow.marked, flow.comment) == (":hit:", "hit: from the store")
    notes.response(respond(flow))
    assert flow.comment == "hit: from the store, 1.5 kB in 2 s"
    assert not is_changed_by_user(flow)


def test_streamed_answer_has_the_size_that_was_sent(notes: FlowNotes) -> None:
    flow = running_flow()
    notes.answered(flow, HIT, HUB_HOST)
    stream = counted(flow.metadata, RESPONSE_SIZE, lambda data: data * 1000)
    assert [stream(b"abc"), stream(b"abcd"), stream(b"")] == [b"abc" * 1000, b"abcd" * 1000, b""]
    respond(flow).response.content = None  # type: ignore[union-attr]
    notes.response(flow)
    assert flow.comment == "hit: from the store, 7 kB in 2 s"


def test_chunks_of_another_stream_are_counted(notes: FlowNotes) -> None:
    flow = respond(running_flow())
    assert flow.response is not None
    flow.response.stream = lambda data: (each for each in (data, b"", data))
    notes.count_response(flow)
    assert callable(flow.response.stream)
    assert list(flow.response.stream(b"abc")) == [b"abc", b"", b"abc"]
    assert flow.metadata[RESPONSE_SIZE] == 6


def test_failure_names_the_side_and_keeps_the_sentence(notes: FlowNotes) -> None:
    flow = running_flow()
    notes.answered(flow, HIT, HUB_HOST)
    flow.metadata[RESPONSE_SIZE] = 500
    respond(flow)
    flow.error = Error("Client disconnected.")
    notes.error(flow)
    assert flow.marked == ":error:"
    assert flow.comment == "client error: disconnected; hit: from the store, 500 B of 1.5 kB in 2 s"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (BadUpstream("sent fewer bytes"), "upstream error: sent fewer bytes; hit: from the store"),
        (StorageError("cannot read"), "cache error: cannot read; hit: from the store"),
    ],
)
def test_body_that_broke_off_has_the_reason_and_not_that_of_mitmproxy(
    notes: FlowNotes, error: HubcacheError, text: str
) -> None:
    flow = running_flow()
    notes.answered(flow, HIT, HUB_HOST)
    notes.broken_off(flow, error)
    flow.error = Error("peer closed connection")
    notes.error(flow)
    assert flow.comment == f"{text}, in 2 s"


def test_failure_of_an_upstream_and_a_killed_flow_differ(notes: FlowNotes) -> None:
    for message, marked in (("[Errno 111] refused", ":error:"), (Error.KILLED_MESSAGE, ":refused:")):
        flow = running_flow()
        notes.forwarded(flow, Forward(None), PUSH)
        flow.error = Error(message)
        notes.error(flow)
        assert flow.marked == marked
        assert "push: to" in flow.comment


@pytest.mark.parametrize(
    ("status", "marked", "words"), [(201, ":push:", "answered 201"), (502, ":error:", "upstream error 502: ")]
)
def test_forwarded_request_has_the_status_of_the_registry(
    notes: FlowNotes, status: int, marked: str, words: str
) -> None:
    flow = running_flow()
    notes.forwarded(flow, Forward(None), PUSH)
    notes.response(respond(flow, status))
    assert flow.marked == marked
    assert words in flow.comment


def test_refused_request_has_the_reason(notes: FlowNotes) -> None:
    flow = running_flow()
    notes.passed_through(flow)
    assert flow.comment.startswith("passed: to address")
    notes.refused(flow, "10.0.0.1 is not permitted")
    notes.response(respond(flow, 403))
    assert (flow.marked, flow.comment) == (":refused:", "refused: 10.0.0.1 is not permitted, 1.5 kB in 2 s")


@pytest.mark.parametrize("change", [{"comment": "mine"}, {"marked": ":red_circle:"}])
def test_note_of_the_user_stays(notes: FlowNotes, change: dict[str, str]) -> None:
    flow = running_flow()
    notes.answered(flow, HIT, HUB_HOST)
    vars(flow).update(change)
    before = flow.marked, flow.comment
    assert is_changed_by_user(flow)
    notes.broken_off(flow, StorageError("x"))
    flow.error = Error("Client disconnected.")
    notes.error(flow)
    notes.response(respond(flow))
    assert (flow.marked, flow.comment) == before


def test_flow_of_another_addon_stays_without_a_note(notes: FlowNotes) -> None:
    flow = respond(running_flow())
    notes.response(flow)
    flow.error = Error("x")
    notes.error(flow)
    assert (flow.marked, flow.comment, flow.metadata) == ("", "", {})


def test_tunnel_says_where_it_goes_and_how_much_it_carried(notes: FlowNotes) -> None:
    flow = tflow.ttcpflow()
    notes.tcp_start(flow)
    assert (flow.marked, flow.comment) == (":tunnel:", "tunnel: to address, contents not decrypted")
    notes.tcp_end(flow)
    sent = sum(len(message.content) for message in flow.messages)
    assert flow.comment.startswith(f"tunnel: to address, contents not decrypted, {sent} B in ")


def test_untested_version_has_names_of_emoji() -> None:
    flow = running_flow()
    FlowNotes().answered(flow, HIT, HUB_HOST)
    assert flow.marked == STANDARD_NAMES[Marker.HIT] == ":heavy_check_mark:"
