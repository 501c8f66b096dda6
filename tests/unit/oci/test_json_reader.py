"""Reading JSON returns a value or raises `ValueError`, for any bytes."""

import base64
import contextlib
import math

import pytest
from hubcache.oci.errors import Denied, RegistryError
from hubcache.oci.json_reader import MAX_JSON, read_json
from hubcache.serve.access import remaining_life
from hypothesis import given
from hypothesis import strategies as st
from support.standin import Fault, Hub
from support.upstreams import upstream_to


@pytest.mark.parametrize(
    ("text", "value"), [(b"{}", {}), (b'["a", 1]', ["a", 1]), (b" null ", None), (b'"\xc3\xa9"', "\xe9")]
)
def test_document_is_read_as_its_value(text: bytes, value: object) -> None:
    assert read_json(text) == value


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"<html>", b"\xff\xfe\x00", b"[" * 200_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000],
    ids=lambda text: repr(text[:8]),
)
def test_invalid_json_raises_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_json(text)


def test_document_over_the_limit_is_refused() -> None:
    assert read_json(b"1" + b" " * (MAX_JSON - 1)) == 1
    with pytest.raises(ValueError, match="more than"):
        read_json(b"1" + b" " * MAX_JSON)
    with pytest.raises(ValueError, match="more than 3"):
        read_json(b"1000", 3)


@given(st.binary(max_size=40))
def test_any_bytes_raise_value_error_only(text: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_json(text)


def claims(payload: bytes) -> str:
    return "Bearer x." + base64.urlsafe_b64encode(payload).decode().rstrip("=") + ".y"


@pytest.mark.parametrize("payload", [b"[" * 10_000, b'{"exp":' * 5000, b'{"exp": ' + b"9" * 5000 + b"}", b"\xff"])
def test_unreadable_client_token_has_no_expiry(payload: bytes) -> None:
    assert remaining_life(claims(payload), 0.0) == math.inf
    assert remaining_life(claims(b'{"exp": 60}'), 0.0) == 60


@pytest.mark.parametrize(
    "message", [b"[" * 900 + b"]" * 900, b"5", b"null", b"{}"], ids=lambda message: repr(message[:3])
)
async def test_error_message_that_is_not_text_is_omitted(hub: Hub, message: bytes) -> None:
    hub.faults.add(
        Fault(kind="manifest", status=403, body=b'{"errors": [{"code": "DENIED", "message": %b}]}' % message)
    )
    async with upstream_to(hub) as line:
        with pytest.raises(Denied) as caught:
            await line.upstream.get_manifest("library/app", "1", "*/*")
    assert isinstance(caught.value.detail, dict)
    assert caught.value.detail["upstream_message"] is None


@pytest.mark.parametrize("kind", ["manifest", "token"])
@pytest.mark.parametrize("status", [400, 404, 500])
async def test_deeply_nested_json_of_an_upstream_is_a_registry_error(hub: Hub, kind: str, status: int) -> None:
    hub.image("library/app", "1")
    hub.faults.add(Fault(kind=kind, status=status, body=b'{"errors":' * 5000, content_type="application/json"))
    async with upstream_to(hub) as line:
        with pytest.raises(RegistryError):
            await line.upstream.get_manifest("library/app", "1", "*/*")
