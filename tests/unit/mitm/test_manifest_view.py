"""The content view of manifests and configs: tables of a bounded size, and no exception for any content."""

import json
import time
from typing import Any

import pytest
from hubcache.mitm.manifest_view import ManifestContentview
from hubcache.mitm.text_table import MAX_CELL, MAX_ROWS
from hubcache.oci.digest import Digest
from hubcache.oci.media import COMMON_TYPES, OCI_INDEX, OCI_MANIFEST
from hypothesis import given, settings
from hypothesis import strategies as st
from mitmproxy import contentviews
from support import engine29
from support.standin import Hub

STORED, MISSING = Digest.of(b"stored"), Digest.of(b"missing")
CONFIG = {
    "architecture": "arm64",
    "variant": "v8",
    "os": "linux",
    "created": "2026-01-02T03:04:05Z",
    "config": {
        "Env": ["PATH=/usr/bin:/bin"],
        "Cmd": ["nginx", "-g"],
        "Labels": {"maintainer": "me"},
        "ExposedPorts": {"80/tcp": {}},
    },
    "rootfs": {"type": "layers", "diff_ids": [STORED]},
    "history": [{"created_by": "ADD file"}, {"created_by": "CMD nginx", "empty_layer": True}],
}


def view() -> ManifestContentview:
    made = ManifestContentview()
    made.is_stored = lambda digest: digest == STORED
    return made


def metadata(content_type: str | None) -> contentviews.Metadata:
    return contentviews.Metadata(content_type=content_type)


def rendered(document: object, content_type: str = OCI_INDEX) -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return view().prettify(data, metadata(content_type))


def row(text: str, begin: str) -> list[str]:
    """Return the cells of the only line that begins with `begin`."""
    (line,) = [each for each in text.splitlines() if each.startswith(begin)]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_image_index_has_a_row_for_each_manifest() -> None:
    text = rendered(
        {
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": STORED,
                    "size": 1021,
                    "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"},
                    "annotations": {"org.opencontainers.image.version": "12.7", "com.docker.official": "x"},
                },
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": MISSING,
                    "size": 840,
                    "platform": {"os": "unknown", "architecture": "unknown"},
                    "annotations": {
                        "vnd.docker.reference.type": "attestation-manifest",
                        "vnd.docker.reference.digest": STORED,
                    },
                },
            ],
            "annotations": {"org.opencontainers.image.base.name": "scratch"},
        }
    )
    assert text.startswith("image index: 2 manifests, ")
    manifest = "oci.image.manifest.v1+json"
    assert row(text, "linux/arm64/v8") == ["linux/arm64/v8", "1 kB", "yes", manifest, STORED, "version 12.7"]
    assert row(text, "attestations") == ["attestations", "840 B", "no", manifest, MISSING, f"attests {STORED}"]
    assert row(text, "org.opencontainers.image.base.name")[1] == "scratch"


def test_referrers_show_their_artifact_types() -> None:
    entry = {"mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.sbom", "digest": STORED, "size": 5}
    text = rendered({"manifests": [entry]})
    assert row(text, "no platform")[4:] == ["example.sbom", STORED]


def test_image_manifest_has_its_config_its_layers_and_their_sum() -> None:
    layers = [{"mediaType": "application/x", "digest": each, "size": 31_200_000} for each in (STORED, MISSING)]
    text = rendered({"config": {"digest": MISSING, "size": 99}, "layers": layers, "subject": {"digest": STORED}})
    assert text.startswith("image manifest: 2 layers with 62.4 MB, ")
    assert row(text, "subject") == ["subject", "?", "yes", STORED]
    assert row(text, "config") == ["config", "99 B", "no", MISSING]
    assert row(text, "layer 2") == ["layer 2", "31.2 MB", "no", "x", MISSING]


def test_config_shows_how_the_image_runs_and_was_made() -> None:
    text = rendered(CONFIG, "application/octet-stream")
    assert text.startswith("image config: linux/arm64/v8, ")
    assert row(text, "Cmd") == ["Cmd", "nginx -g"]
    assert row(text, "ExposedPorts")[1] == "80/tcp"
    assert "  PATH=/usr/bin:/bin" in text.splitlines()
    assert row(text, "  maintainer") == ["maintainer", "me"]
    assert "(no layer) CMD nginx" in text


def test_stored_is_left_out_while_the_store_is_not_open() -> None:
    text = ManifestContentview().prettify(
        json.dumps({"layers": [{"digest": STORED, "size": 1}]}).encode(), metadata(None)
    )
    assert "STORED" not in text
    assert STORED in text


@pytest.mark.parametrize("content_type", [*COMMON_TYPES, "application/vnd.oci.image.config.v1+json"])
def test_view_is_chosen_for_its_media_types(content_type: str) -> None:
    contentviews.add(made := view())
    assert contentviews.registry.get_view(b"{}", metadata(content_type)) is made
    assert contentviews.registry.get_view(b"", metadata(content_type)) is not made


@pytest.mark.parametrize(
    ("data", "content_type", "is_chosen"),
    [
        (json.dumps(CONFIG).encode(), "application/octet-stream", True),
        (b"{}", "application/octet-stream", False),
        (b"\x1f\x8b" + b'"rootfs" "architecture"', "application/octet-stream", False),
        (b'{"errors": []}', "application/json", False),
        (json.dumps(CONFIG).encode(), "application/json", False),
        (b"{}", None, False),
    ],
)
def test_view_is_chosen_for_a_config_and_for_no_other_blob(
    data: bytes, content_type: str | None, is_chosen: bool
) -> None:
    assert (view().render_priority(data, metadata(content_type)) > 1) is is_chosen


@pytest.mark.parametrize(
    ("data", "begin"),
    [
        (b'{"errors": [1]}', '{\n  "errors"'),
        (b"[1, 2]", "[\n"),
        (b"", "0 bytes"),
        (b"\x00\xffabc", "5 bytes, which are no manifest\n00000000  00 ff 61 62 63"),
        (b"[" * 5_000_000, "5000000 bytes"),
        (b"[" * 900 + b"]" * 900, ""),
        (b'{"manifests": [' + b"{}," * 40_000 + b"{}]}", "120019 bytes"),
        (b'{"size": ' + b"9" * 5000 + b"}", "5010 bytes"),
        (b"x" * 100_000, "100000 bytes"),
    ],
)
def test_other_content_is_shown_as_json_or_hexadecimal(data: bytes, begin: str) -> None:
    text = rendered(data)
    assert text.startswith(begin)
    assert len(text) < 2_000_000


def test_hostile_image_index_has_a_bounded_table() -> None:
    long = "\x1b[31m" + "x" * 300 + "\n"
    entry = {"digest": long, "size": 10**30, "mediaType": long, "annotations": {"a/in-toto.io": long}, "platform": long}
    text = rendered({"manifests": [entry] * 2000, "annotations": {f"{each}{long}": long for each in range(100)}})
    lines = text.splitlines()
    assert len(lines) < MAX_ROWS + 40
    assert f"… {2000 - MAX_ROWS} more" in lines
    assert max(map(len, lines)) < 8 * MAX_CELL
    assert text.isprintable() or set(text) - {"\n"} == {each for each in text if each.isprintable()}


def test_large_manifest_is_rendered_quickly() -> None:
    entry = {"digest": STORED, "size": 5, "platform": {"os": "linux"}, "annotations": {"a": "b" * 300}}
    data = json.dumps({"manifests": [entry] * 5000}).encode()
    before = time.process_time()
    rendered(data)
    assert time.process_time() - before < 1


_NAMES = (
    *("manifests", "layers", "config", "digest", "size", "mediaType", "platform", "annotations", "os", "architecture"),
    *("rootfs", "history", "Env", "Labels", "ExposedPorts", "created_by", "org.opencontainers.image.version"),
)
_names = st.sampled_from(_NAMES)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(_names, _json, max_size=6))
def test_fields_of_any_type_are_rendered(document: dict[str, Any]) -> None:
    text = rendered(document)
    text.encode()
    assert text


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_rendered(data: bytes) -> None:
    assert rendered(data)


def test_image_of_docker_engine_29_is_rendered(hub: Hub) -> None:
    index = engine29.attested(hub, "library/a")
    text = rendered(index.manifest)
    assert "linux/amd64" in text
    assert "attestations" in text
