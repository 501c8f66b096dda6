"""Requests of a worker that is killed are recorded as failed."""

from dataclasses import replace

from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.operate.running_request import RunningRequest
from hubcache.operate.served_request import ServedRequest
from hubcache.serve.messages import Answer, Listener, Request, Result
from hubcache.workers.unended_requests import UnendedRequests

REQUEST = Request("GET", "/v2/library/debian/manifests/12", Registry.parse(HUB_HOST), Listener.MIRROR, {}, client="::1")
ANSWER = Answer(200, {}, Result.HIT, b"body", length=4, size=4, kind="manifest")


def ended(request: Request = REQUEST, answer: Answer = ANSWER) -> ServedRequest:
    records: list[ServedRequest] = []
    RunningRequest(request, records.append).answered(answer, sent=4, is_complete=True)
    return records[0]


def test_requests_whose_end_was_not_reported_have_failed() -> None:
    records: list[ServedRequest] = []
    unended = UnendedRequests(records.append)
    other = replace(REQUEST, client="::2")
    for request in (REQUEST, REQUEST, other):
        unended.begin(request)
    unended.end(ended())
    unended.end(ended(other, replace(ANSWER, is_repeated=True)))
    unended.fail()
    assert sorted(record.client for record in records) == ["::1", "::2"]
    assert {(record.error, record.is_complete) for record in records} == {("a worker process ended", False)}
    unended.fail()
    assert len(records) == 2


def test_nothing_is_left_of_requests_that_ended() -> None:
    unended = UnendedRequests(lambda _: None)
    for _ in range(3):
        unended.begin(REQUEST)
        unended.begin(replace(REQUEST, path="/v2/"))
    for _ in range(4):
        unended.end(ended())
    assert unended._running == {}
