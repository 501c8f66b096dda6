"""Normalized `Accept` headers: two clients share one value only if they would get the same response."""

import json

import pytest
from hubcache.oci.manifest import parse_manifest
from hubcache.oci.media import (
    COMMON_TYPES,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    is_content_type,
    media_type_of,
    normalize_accept,
)
from hypothesis import given
from hypothesis import strategies as st

TYPES = st.sampled_from([*COMMON_TYPES, "application/json", "*/*", "application/vnd.oci.artifact.manifest.v1+json"])
ALL = ", ".join(COMMON_TYPES)


@given(st.permutations([*COMMON_TYPES, "application/vnd.docker.distribution.manifest.v1+prettyjws", "*/*"]))
def test_clients_that_accept_the_four_common_types_share_one_value(types: list[str]) -> None:
    assert normalize_accept(", ".join(types)) == normalize_accept(",".join(types).upper()) == ALL


@given(st.sampled_from(COMMON_TYPES), st.sampled_from(["; q=0", ";q=0.000", " ; Q=0.0", ";v=1;q = 0"]))
def test_client_that_does_not_accept_a_common_type_has_another_value(missing: str, refusal: str) -> None:
    rest = ", ".join(kind for kind in COMMON_TYPES if kind != missing)
    assert missing not in normalize_accept(rest).split(", ")
    assert normalize_accept(f"{rest}, {missing}{refusal}") == normalize_accept(rest) != ALL


@pytest.mark.parametrize("quality", ["q=0.001", "q=1", "q=0.5;x=y"])
def test_type_with_a_low_quality_is_accepted(quality: str) -> None:
    assert normalize_accept(f"{OCI_MANIFEST};{quality}") == OCI_MANIFEST


@pytest.mark.parametrize("accept", [None, "", " , ,", "*/*", "*/*;q=0.1"])
def test_empty_accept_accepts_everything(accept: str | None) -> None:
    assert normalize_accept(accept) == "*/*"


@given(st.lists(TYPES, min_size=1, max_size=8))
def test_order_and_repetition_do_not_matter_and_normalizing_twice_changes_nothing(types: list[str]) -> None:
    value = normalize_accept(", ".join(types))
    assert value == normalize_accept(",".join(reversed(types + types))) == normalize_accept(value)


@given(st.lists(TYPES, min_size=1, max_size=8))
def test_normalized_types_are_accepted_by_the_client(types: list[str]) -> None:
    assert set(normalize_accept(", ".join(types)).split(", ")) <= set(types)


def test_number_of_types_is_limited() -> None:
    assert len(normalize_accept(", ".join(f"application/x{number}" for number in range(1000))).split(", ")) == 32


def test_client_of_single_manifests_accepts_no_image_index() -> None:
    single = normalize_accept(f"{OCI_MANIFEST}, {DOCKER_MANIFEST}")
    assert {OCI_INDEX, DOCKER_LIST}.isdisjoint(single.split(", "))


@given(st.text(max_size=80))
def test_value_is_never_empty(accept: str) -> None:
    assert normalize_accept(accept)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"schemaVersion": 2, "mediaType": "application/vnd.x+json", "manifests": []}', "application/vnd.x+json"),
        (b'{"schemaVersion": 2, "manifests": []}', OCI_INDEX),
        (b'{"schemaVersion": 2, "config": {}, "layers": []}', OCI_MANIFEST),
        (b'{"schemaVersion": 2, "mediaType": 5, "layers": []}', OCI_MANIFEST),
        (b'{"schemaVersion": 2, "mediaType": "a/b\\r\\nSet-Cookie: x", "layers": []}', OCI_MANIFEST),
        (b'{"schemaVersion": 2, "mediaType": "text", "layers": []}', OCI_MANIFEST),
        (b'{"schemaVersion": 1, "fsLayers": [], "layers": []}', None),
        (b'{"schemaVersion": 2}', None),
        (b"[]", None),
        (b"no manifest", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
    ],
)
def test_media_type_follows_from_the_bytes(body: bytes, expected: str | None) -> None:
    assert media_type_of(body) == expected


@given(st.text(max_size=300))
def test_invalid_media_type_field_is_ignored(field: str) -> None:
    expected = media_type_of(json.dumps({"mediaType": field}).encode())
    assert expected is None or (
        expected == field and expected.isascii() and expected.isprintable() and len(expected) <= 255
    )


def test_media_type_of_a_large_manifest_follows_from_its_bytes() -> None:
    body = json.dumps({"mediaType": OCI_INDEX, "manifests": [], "annotations": {"text": "x" * (2 << 20)}}).encode()
    assert parse_manifest(body) == ()
    assert media_type_of(body) == OCI_INDEX


@pytest.mark.parametrize("text", [OCI_INDEX, "application/json; charset=utf-8", "a/b ;c=d"])
def test_media_type_with_or_without_parameters_is_a_content_type(text: str) -> None:
    assert is_content_type(text)


@pytest.mark.parametrize(
    "text", ["", "json", "a/", "a/b c", "a/b\r\nSet-Cookie: c", "a/b; c=\r\nd: e", "a/b\n", "a/é", f"a/b;{'c' * 300}"]
)
def test_what_cannot_be_sent_as_a_header_is_no_content_type(text: str) -> None:
    assert not is_content_type(text)
