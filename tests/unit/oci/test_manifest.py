"""Parsing manifests: all descriptors are returned in order, and malformed manifests are refused as a whole."""

import json
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import ManifestInvalid
from hubcache.oci.manifest import MAX_DESCRIPTORS, MAX_MANIFEST, Descriptor, parse_image_index, parse_manifest
from hypothesis import given
from hypothesis import strategies as st

DESCRIPTORS = st.tuples(st.binary(max_size=4).map(Digest.of), st.integers(0, 1 << 50))
LISTS = st.lists(DESCRIPTORS, max_size=4)
GOOD = {"digest": str(Digest.of(b"x")), "size": 1}


def written(found: list[tuple[Digest, int]]) -> list[dict[str, Any]]:
    return [{"mediaType": "a/b", "digest": str(digest), "size": size} for digest, size in found]


@given(LISTS, DESCRIPTORS | st.none(), LISTS, LISTS)
def test_descriptors_are_returned_in_order(manifests: Any, config: Any, layers: Any, blobs: Any) -> None:
    document: dict[str, Any] = {"manifests": written(manifests), "layers": written(layers), "blobs": written(blobs)}
    if config is not None:
        document["config"] = written([config])[0]
    contents = ([] if config is None else [config]) + layers + blobs
    assert parse_manifest(json.dumps(document).encode()) == (
        *(Descriptor(digest, size, True) for digest, size in manifests),
        *(Descriptor(digest, size, False) for digest, size in contents),
    )


@pytest.mark.parametrize("document", [{}, {"layers": None}, {"schemaVersion": 1, "fsLayers": [{"blobSum": "x"}]}])
def test_json_of_unknown_types_has_no_descriptors(document: object) -> None:
    assert parse_manifest(json.dumps(document).encode()) == ()


@pytest.mark.parametrize(
    "body",
    [b"", b"\0", b"<html>", b"Too Many Requests", b'{"layers": [}', b"[]", b"null", b'"text"', b"1", b"\xff\xfe{",
     b"{}x", b'{"a":' * 100_000, b"1" * 10_000],
)  # fmt: skip
def test_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse_manifest(body)


@pytest.mark.parametrize(
    "invalid",
    [
        {"digest": None},
        {"digest": "sha256:abc"},
        {"digest": "../../etc/passwd"},
        {"digest": 7},
        {"size": None},
        {"size": -1},
        {"size": "1"},
        {"size": 1.5},
        {"size": True},
    ],
)
@pytest.mark.parametrize("field", ["manifests", "layers", "blobs", "config"])
def test_descriptor_without_a_valid_digest_and_size_is_refused(field: str, invalid: dict[str, object]) -> None:
    descriptor = {key: value for key, value in (GOOD | invalid).items() if value is not None}
    document = {field: descriptor if field == "config" else [GOOD, descriptor]}
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(json.dumps(document).encode())
    assert caught.value.code == "MANIFEST_INVALID"


@pytest.mark.parametrize(
    "document", [{"layers": {"digest": "x"}}, {"manifests": "x"}, {"layers": ["x"]}, {"config": []}]
)
def test_fields_of_the_wrong_type_are_refused(document: object) -> None:
    with pytest.raises(ManifestInvalid):
        parse_manifest(json.dumps(document).encode())


def test_manifest_over_four_mebibytes_is_refused() -> None:
    body = json.dumps({"note": ""}).encode()
    fitting = body[:-2] + b" " * (MAX_MANIFEST - len(body)) + body[-2:]
    assert len(fitting) == MAX_MANIFEST
    assert parse_manifest(fitting) == ()
    with pytest.raises(ManifestInvalid, match="too large"):
        parse_manifest(fitting + b" ")


@given(
    st.binary(max_size=100)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["layers", "config", "manifests", "blobs", "digest", "size"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    try:
        found = parse_manifest(body)
    except ManifestInvalid:
        return
    assert all(descriptor.size >= 0 for descriptor in found)


def test_attestation_names_the_manifest_that_it_describes() -> None:
    about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": str(Digest.of(b"a"))}
    for annotations, expected in (
        (about, Digest.of(b"a")),
        (about | {"vnd.docker.reference.type": "other"}, None),
        (about | {"vnd.docker.reference.digest": "nonsense"}, None),
        ({"vnd.docker.reference.type": "attestation-manifest"}, None),
        ("text", None),
        (None, None),
    ):
        entry = {"digest": str(Digest.of(b"b")), "size": 1, "annotations": annotations}
        (found,) = parse_manifest(json.dumps({"manifests": [entry]}).encode())
        assert found.attests == expected


@pytest.mark.parametrize("body", [b"{}", b'{"layers": []}', b"[]", b"", b'{"manifests": {"a": 1}}', b"[" * 100_000])
def test_document_without_manifests_is_not_an_image_index(body: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse_image_index(body)


def test_empty_image_index_is_parsed() -> None:
    assert parse_image_index(b'{"manifests": []}') == parse_image_index(b'{"manifests": null}') == ()


def test_manifest_with_the_most_descriptors_is_parsed() -> None:
    descriptor = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": str(Digest.of(b"a")),
        "size": 1000,
        "platform": {"os": "linux", "architecture": "arm", "variant": "v7", "os.version": "1"},
        "annotations": {f"org.example.annotation.{number}": "value" for number in range(4)},
    }
    body = json.dumps({"schemaVersion": 2, "manifests": [descriptor] * MAX_DESCRIPTORS}).encode()
    assert len(parse_manifest(body)) == MAX_DESCRIPTORS
