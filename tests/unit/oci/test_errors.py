"""Every error that a client may receive has the spec's JSON form, its code and its headers."""

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
def test_json_body_contains_any_message_and_detail(message: str, detail: object) -> None:
    body = BlobUnknown(message, detail).body()
    assert body.isascii()
    assert json.loads(body)["errors"] == [{"code": "BLOB_UNKNOWN", "message": message, "detail": detail}]


def test_unauthorized_has_the_challenge_header() -> None:
    error = Unauthorized("authentication required", 'Bearer realm="https://auth.example/token"')
    assert (error.status, json.loads(error.body())["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    assert error.headers() == {"WWW-Authenticate": 'Bearer realm="https://auth.example/token"'}
    assert Unauthorized("authentication required", "").headers() == {}


def test_range_invalid_has_the_size() -> None:
    error = RangeInvalid("requested range not satisfiable", 1000)
    assert (error.status, error.headers()) == (416, {"Content-Range": "bytes */1000"})
    assert json.loads(error.body())["errors"][0]["detail"] == {"size": 1000}


@given(st.floats(0, 1e7))
def test_retry_after_is_a_whole_number_of_at_least_one_second(seconds: float) -> None:
    value = TooManyRequests("slow down", seconds).headers()["Retry-After"]
    assert re.fullmatch("[1-9][0-9]*", value)
    assert abs(int(value) - seconds) <= 1


@pytest.mark.parametrize("kind", [StorageError, StoreTooNew, ConfigError])
def test_internal_errors_are_not_registry_errors(kind: type[HubcacheError]) -> None:
    assert not issubclass(kind, RegistryError)


@pytest.mark.parametrize(
    "error",
    [Unauthorized("m", "Bearer x", {"a": 1}), TooManyRequests("m", 3.5), RangeInvalid("m", 7), StorageError("m")],
)
def test_copy_of_an_error_has_no_traceback(error: HubcacheError) -> None:
    try:
        raise error
    except HubcacheError as raised:
        copy = raised.without_traceback()
    assert (type(copy), copy.args, vars(copy)) == (type(error), error.args, vars(error))
    assert copy.__traceback__ is None
    assert str(copy) == "m"
