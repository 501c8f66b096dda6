"""Every error a client may see has the spec's JSON form, its code and its headers."""

import json
import re

import pytest
from hubcache.oci.errors import (
    BadUpstream,
    BlobUnknown,
    ConfigError,
    Denied,
    DigestInvalid,
    HeadersTooLarge,
    HubcacheError,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    RangeInvalid,
    RegistryError,
    StorageError,
    StoreTooNew,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from hypothesis import given
from hypothesis import strategies as st

PLAIN = [
    (NameInvalid, 400, "NAME_INVALID"),
    (DigestInvalid, 400, "DIGEST_INVALID"),
    (ManifestInvalid, 400, "MANIFEST_INVALID"),
    (ManifestUnknown, 404, "MANIFEST_UNKNOWN"),
    (BlobUnknown, 404, "BLOB_UNKNOWN"),
    (Denied, 403, "DENIED"),
    (Unsupported, 405, "UNSUPPORTED"),
    (TooManyRequests, 429, "TOOMANYREQUESTS"),
    (BadUpstream, 502, "UNAVAILABLE"),
    (Unavailable, 503, "UNAVAILABLE"),
    (HeadersTooLarge, 431, "UNSUPPORTED"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(("kind", "status", "code"), PLAIN)
def test_each_error_has_its_status_and_code(kind: type[RegistryError], status: int, code: str) -> None:
    error = kind("what happened")
    assert error.status == status
    assert json.loads(error.body()) == {"errors": [{"code": code, "message": "what happened", "detail": None}]}
    assert error.headers() == {}
    assert str(error) == "what happened"


@given(st.text(), JSON)
def test_message_and_detail_survive_the_json_form_whatever_they_hold(message: str, detail: object) -> None:
    body = BlobUnknown(message, detail).body()
    assert body.isascii()
    assert json.loads(body)["errors"] == [{"code": "BLOB_UNKNOWN", "message": message, "detail": detail}]


def test_a_refusal_of_the_anonymous_view_carries_the_challenge() -> None:
    error = Unauthorized("authentication required", 'Bearer realm="https://auth.example/token"')
    assert (error.status, json.loads(error.body())["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    assert error.headers() == {"WWW-Authenticate": 'Bearer realm="https://auth.example/token"'}
    assert Unauthorized("authentication required", "").headers() == {}


def test_an_unsatisfiable_range_tells_the_size() -> None:
    error = RangeInvalid("requested range not satisfiable", 1000)
    assert (error.status, error.headers()) == (416, {"Content-Range": "bytes */1000"})
    assert json.loads(error.body())["errors"][0]["detail"] == {"size": 1000}


@given(st.floats(0, 1e7))
def test_retry_after_is_a_whole_number_of_at_least_one_second(seconds: float) -> None:
    value = TooManyRequests("slow down", seconds).headers()["Retry-After"]
    assert re.fullmatch("[1-9][0-9]*", value)
    assert abs(int(value) - seconds) <= 1


@pytest.mark.parametrize("kind", [StorageError, StoreTooNew, ConfigError])
def test_errors_of_the_house_are_not_answers(kind: type[HubcacheError]) -> None:
    assert not issubclass(kind, RegistryError)


@pytest.mark.parametrize(
    "error",
    [Unauthorized("m", "Bearer x", {"a": 1}), TooManyRequests("m", 3.5), RangeInvalid("m", 7), StorageError("m")],
)
def test_error_can_be_had_again_without_its_past(error: HubcacheError) -> None:
    try:
        raise error
    except HubcacheError as raised:
        again = raised.without_traceback()
    assert (type(again), again.args, vars(again)) == (type(error), error.args, vars(error))
    assert again.__traceback__ is None
    assert str(again) == "m"
