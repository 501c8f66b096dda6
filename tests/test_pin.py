"""Names of images as people write them, read as docker reads them."""

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import RegistryError
from hubcache.oci.pin import Pin
from hubcache.oci.registry import HUB_HOST
from hypothesis import given
from hypothesis import strategies as st

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "pin"),
    [
        ("debian", Pin(HUB_HOST, "library/debian", "latest")),
        ("debian:12", Pin(HUB_HOST, "library/debian", "12")),
        (" debian:12\n", Pin(HUB_HOST, "library/debian", "12")),
        ("grafana/loki", Pin(HUB_HOST, "grafana/loki", "latest")),
        ("docker.io/debian:12", Pin(HUB_HOST, "library/debian", "12")),
        ("docker.io/grafana/loki:3", Pin(HUB_HOST, "grafana/loki", "3")),
        ("index.docker.io/grafana/loki:3", Pin(HUB_HOST, "grafana/loki", "3")),
        (f"debian@{DIGEST}", Pin(HUB_HOST, "library/debian", Digest.parse(DIGEST))),
        (f"debian:12@{DIGEST}", Pin(HUB_HOST, "library/debian", Digest.parse(DIGEST))),
        ("ghcr.io/owner/name:1", Pin("ghcr.io", "owner/name", "1")),
        ("GHCR.io/name", Pin("ghcr.io", "name", "latest")),
        ("localhost/name", Pin("localhost", "name", "latest")),
        ("localhost:5000/name:1", Pin("localhost:5000", "name", "1")),
    ],
)
def test_image_is_read_as_docker_reads_it(text: str, pin: Pin) -> None:
    assert Pin.parse(text) == pin


@pytest.mark.parametrize(
    "text",
    ["", ":12", "debian:", "debian@", "debian@sha256:12", "debian:1:2", "Debian", "a//b", "ghcr.io/", "a b"],
)
def test_what_docker_would_refuse_is_refused(text: str) -> None:
    with pytest.raises(RegistryError):
        Pin.parse(text)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        pin = Pin.parse(text)
    except RegistryError:
        return
    assert (
        Pin.parse(f"{pin.host}/{pin.repository}{'@' if isinstance(pin.reference, Digest) else ':'}{pin.reference}")
        == pin
    )
