"""A request becomes one record when it ends."""

from dataclasses import replace

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import ManifestUnknown
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.operate import running_request
from hubcache.operate.running_request import Names, RunningRequest, names_in
from hubcache.operate.served_request import ServedRequest
from hubcache.serve.errors import error_answer
from hubcache.serve.messages import Answer, Forward, Listener, Request, Result

DIGEST = str(Digest.of(b"x"))
REQUEST = Request("GET", "/v2/library/debian/manifests/12", Registry.parse(HUB_HOST), Listener.MIRROR, {}, client="::1")
ANSWER = Answer(200, {}, Result.HIT, b"body", length=4, size=4, kind="manifest")


def record(
    request: Request = REQUEST, answer: Answer = ANSWER, sent: int = 4, is_complete: bool = True
) -> ServedRequest:
    records: list[ServedRequest] = []
    running = RunningRequest(request, records.append)
    running.answer_begins()
    running.answered(answer, sent=sent, is_complete=True, source_wait=1, client_wait=2)
    (found,) = records
    return found


def test_record_has_what_the_request_and_the_answer_say() -> None:
    found = record()
    assert (found.client, found.listener, found.registry) == ("::1", Listener.MIRROR, HUB_HOST)
    assert (found.kind, found.repository, found.reference) == ("manifest", "library/debian", "12")
    assert (found.method, found.status, found.result) == ("GET", 200, Result.HIT)
    assert (found.size, found.sent, found.is_complete, found.is_private) == (4, 4, True, False)
    assert (found.source_wait, found.client_wait, found.error) == (1, 2, "")
    assert found.ended > 1.7e9


def test_times_count_from_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.25, 13.0])
    monkeypatch.setattr(running_request.time, "monotonic", lambda: next(now))
    found = record()
    assert (found.first_byte, found.duration) == (0.25, 3)


def test_decision_before_the_handover_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0])
    monkeypatch.setattr(running_request.time, "monotonic", lambda: next(now))
    records: list[ServedRequest] = []
    running = RunningRequest(REQUEST, records.append)
    forward = Forward("Bearer own", kind="manifest", decision_seconds=5.0, token_wait=1.0)
    running.was_decided(forward)
    running.forwarded(forward, 200, size=10, sent=10, is_complete=True)
    assert (records[0].duration, records[0].token_wait, records[0].result) == (7, 1, Result.BYPASS)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [(replace(REQUEST, method="HEAD"), ANSWER), (REQUEST, replace(ANSWER, status=304, body=b"", length=4))],
    ids=["HEAD", "304"],
)
def test_answer_without_a_body_has_no_size(request_: Request, answer: Answer) -> None:
    assert record(request_, answer, 0).size == 0


def test_part_of_a_blob_has_the_size_of_the_part() -> None:
    assert record(answer=replace(ANSWER, status=206, length=2, size=100), sent=2).size == 2


@pytest.mark.parametrize(("headers", "is_private"), [({}, False), ({"authorization": "Bearer own"}, True)])
def test_forwarded_request_is_private_if_it_has_credentials(headers: dict[str, str], is_private: bool) -> None:
    records: list[ServedRequest] = []
    running = RunningRequest(replace(REQUEST, headers=headers), records.append)
    running.forwarded(Forward(None, kind="manifest"), 200, size=10, sent=10, is_complete=True)
    assert records[0].is_private is is_private


def test_authorized_answer_is_private() -> None:
    assert record(answer=replace(ANSWER, is_private=True)).is_private


def test_request_is_recorded_once() -> None:
    records: list[ServedRequest] = []
    running = RunningRequest(REQUEST, records.append)
    running.answered(ANSWER, sent=4, is_complete=True)
    running.failed()
    assert len(records) == 1


def test_request_without_an_answer_has_failed() -> None:
    records: list[ServedRequest] = []
    RunningRequest(REQUEST, records.append).failed("why")
    (found,) = records
    assert (found.kind, found.result, found.status, found.is_complete) == ("manifest", Result.ERROR, 0, False)
    assert (found.error, found.first_byte) == ("why", found.duration)


def test_refusal_has_its_reason_and_the_kind_of_the_request() -> None:
    found = record(answer=error_answer(ManifestUnknown("manifest unknown"), "GET"))
    assert (found.kind, found.status, found.error) == ("manifest", 404, "manifest unknown")


def test_page_of_the_program_is_not_recorded() -> None:
    records: list[ServedRequest] = []
    RunningRequest(REQUEST, records.append).answered(replace(ANSWER, kind="setup"), sent=4, is_complete=True)
    assert records == []


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/v2/", Names("ping", "", "")),
        ("/v2/a/b/manifests/1", Names("manifest", "a/b", "1")),
        (f"/v2/a/blobs/{DIGEST}", Names("blob", "a", DIGEST)),
        (f"/v2/a/blobs/{DIGEST.replace(':', '%3A')}", Names("blob", "a", DIGEST)),
        (f"/v2/a/referrers/{DIGEST}", Names("referrers", "a", DIGEST)),
        ("/v2/a/tags/list", Names("other", "a", "")),
        ("/v2/a/blobs/uploads/", Names("other", "a", "")),
        ("/v2/UPPER/manifests/1", Names("other", "", "")),
        ("/v2/a/manifests/\x1b[2J", Names("other", "", "")),
        ("/v2/a/manifests/" + "x" * 10_000, Names("other", "", "")),
    ],
)
def test_names_are_those_that_are_valid(path: str, names: Names) -> None:
    assert names_in(path) == names
