"""The sentence in the comment of a flow."""

import pytest
from hubcache.mitm import flow_sentences
from hubcache.mitm.flow_markers import Marker
from hubcache.oci.errors import (
    BlobUnknown,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    RegistryError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    UpstreamNotContacted,
)
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.serve import cache_status
from hubcache.serve.errors import error_answer
from hubcache.serve.messages import Answer, Forward, Listener, Request, Result

HOUR = 3600.0


def of(result: Result, status: str = "", *, code: int = 200, kind: str = "manifest", lifetime: float = 60.0) -> str:
    answer = Answer(code, {"Cache-Status": status} if status else {}, result, kind=kind)
    return flow_sentences.of_answer(answer, HUB_HOST, lifetime).text


def test_answer_from_the_store_is_named_by_what_was_asked_upstream() -> None:
    assert of(Result.HIT, cache_status.hit(20)) == "hit: from the store"
    assert of(Result.REVALIDATED, cache_status.validated()) == f"revalidated: {HUB_HOST} confirmed it; from the store"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (cache_status.fetched(stored=True), f"miss: from {HUB_HOST} and stored"),
        (cache_status.fetched(stored=False), f"miss: from {HUB_HOST}, not stored"),
        (
            cache_status.fetched(stored=True, collapsed=True),
            f"miss: from {HUB_HOST}, in a download that an earlier request began",
        ),
    ],
)
def test_fetched_answer_says_whether_it_is_stored(status: str, text: str) -> None:
    assert of(Result.MISS, status) == text


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (
            cache_status.stale(2 * HOUR, "registry-1.docker.io did not answer in 10 s"),
            "stale: registry-1.docker.io did not answer in 10 s; served from the store, validated 3 h ago",
        ),
        (
            cache_status.stale(0, "host cannot be reached: refused; nothing listens"),
            "stale: host cannot be reached: refused; served from the store",
        ),
        (cache_status.stale(0, "upstream is slow"), f"stale: {HUB_HOST} is slow; served from the store"),
        ("another header", "stale: served from the store"),
    ],
)
def test_stale_answer_says_why_and_when_it_was_validated(status: str, text: str) -> None:
    assert of(Result.STALE, status, lifetime=HOUR) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NameInvalid("invalid repository name"), "client error 400: invalid repository name"),
        (NameUnknown("no such path"), "client error 404: no such path"),
        (ManifestUnknown("manifest unknown"), "upstream error 404: manifest unknown"),
        (TooManyRequests("pull rate limit"), "upstream error 429: pull rate limit"),
        (Unavailable("host is down"), "upstream error 503: host is down"),
        (UpstreamNotContacted("offline: upstreams are not contacted"), "cache error 503: offline: upstreams are not c"),
        (Unavailable("upstream answered 500"), f"upstream error 503: {HUB_HOST} answered 500"),
        (RegistryError("bug"), "cache error 500: bug"),
        (Unavailable("a\nb\x1b[31m" + "c" * 999), "upstream error 503: a b [31mccc"),
    ],
)
def test_error_says_whose_fault_it_is(error: RegistryError, text: str) -> None:
    marker, found = flow_sentences.of_answer(error_answer(error, "GET"), HUB_HOST, 60)
    assert marker is Marker.ERROR
    assert found.startswith(text)
    assert len(found) < 240


def test_error_of_a_head_request_says_the_status_alone() -> None:
    answer = error_answer(BlobUnknown("blob unknown"), "HEAD")
    assert flow_sentences.of_answer(answer, HUB_HOST, 60) == (Marker.ERROR, "upstream error 404")


def test_demand_of_a_token_is_no_error() -> None:
    answer = error_answer(Unauthorized("authentication required", 'Bearer realm="x"'), "GET")
    assert flow_sentences.of_answer(answer, HUB_HOST, 60).marker is Marker.LOCAL


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Answer(200, {}, Result.LOCAL, kind="setup"), "setup"),
        (Answer(200, {}, Result.LOCAL, kind="token"), "token"),
        (Answer(200, {}, Result.BYPASS, kind="token"), "token"),
        (Answer(200, {}, Result.LOCAL, kind="ping"), "local"),
        (Answer(401, {}, Result.LOCAL, kind="ping"), "local"),
    ],
)
def test_sentence_begins_with_the_word_of_the_marker(answer: Answer, word: str) -> None:
    marker, text = flow_sentences.of_answer(answer, HUB_HOST, 60)
    assert marker.value == word
    assert text.startswith(f"{word}: ")


@pytest.mark.parametrize(
    ("method", "authorization", "kind", "marker"),
    [
        ("PUT", "Bearer own", "manifest", Marker.PUSH),
        ("DELETE", None, "manifest", Marker.PUSH),
        ("GET", "Bearer own", "blob", Marker.PRIVATE),
        ("GET", None, "blob", Marker.PASSED),
        ("GET", "Bearer own", "other", Marker.PASSED),
    ],
)
def test_forwarded_request_is_a_push_or_private_or_neither(
    method: str, authorization: str | None, kind: str, marker: Marker
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    registry = Registry(HUB_HOST, f"https://{HUB_HOST}")
    request = Request(method, "/v2/a/blobs/b", registry, Listener.PROXY, headers)
    found = flow_sentences.of_forward(Forward(authorization, kind=kind), request)
    assert found.marker is marker
    assert HUB_HOST in found.text


@pytest.mark.parametrize(
    ("size", "whole", "text"),
    [
        (31_200_000, None, ", 31.2 MB in 0.4 s"),
        (31_200_000, 31_200_000, ", 31.2 MB in 0.4 s"),
        (3_100_000, 31_200_000, ", 3.1 MB of 31.2 MB in 0.4 s"),
        (0, 31_200_000, ", 0 B of 31.2 MB in 0.4 s"),
        (0, None, ", in 0.4 s"),
    ],
)
def test_ending_says_how_much_was_sent(size: int, whole: int | None, text: str) -> None:
    assert flow_sentences.ending(size, whole, 0.42) == text
