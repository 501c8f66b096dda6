"""Parsing image names as docker does."""

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import RegistryError
from hubcache.oci.image_name import ImageName
from hubcache.oci.registry import HUB_HOST
from hypothesis import given
from hypothesis import strategies as st

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "pin"),
    [
        ("debian", ImageName(HUB_HOST, "library/debian", "latest")),
        ("debian:12", ImageName(HUB_HOST, "library/debian", "12")),
        (" debian:12\n", ImageName(HUB_HOST, "library/debian", "12")),
        ("grafana/loki", ImageName(HUB_HOST, "grafana/loki", "latest")),
        ("docker.io/debian:12", ImageName(HUB_HOST, "library/debian", "12")),
        ("docker.io/grafana/loki:3", ImageName(HUB_HOST, "grafana/loki", "3")),
        ("index.docker.io/grafana/loki:3", ImageName(HUB_HOST, "grafana/loki", "3")),
        (f"debian@{DIGEST}", ImageName(HUB_HOST, "library/debian", Digest.parse(DIGEST))),
        (f"debian:12@{DIGEST}", ImageName(HUB_HOST, "library/debian", Digest.parse(DIGEST))),
        ("ghcr.io/owner/name:1", ImageName("ghcr.io", "owner/name", "1")),
        ("GHCR.io/name", ImageName("ghcr.io", "name", "latest")),
        ("localhost/name", ImageName("localhost", "name", "latest")),
        ("localhost:5000/name:1", ImageName("localhost:5000", "name", "1")),
    ],
)
def test_image_name_is_parsed_as_docker_parses_it(text: str, pin: ImageName) -> None:
    assert ImageName.parse(text) == pin


@pytest.mark.parametrize(
    "text",
    ["", ":12", "debian:", "debian@", "debian@sha256:12", "debian:1:2", "Debian", "a//b", "ghcr.io/", "a b"],
)
def test_names_that_docker_refuses_are_refused(text: str) -> None:
    with pytest.raises(RegistryError):
        ImageName.parse(text)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        pin = ImageName.parse(text)
    except RegistryError:
        return
    assert (
        ImageName.parse(
            f"{pin.host}/{pin.repository}{'@' if isinstance(pin.reference, Digest) else ':'}{pin.reference}"
        )
        == pin
    )


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (ImageName(HUB_HOST, "library/debian", "12"), "debian:12"),
        (ImageName(HUB_HOST, "library/debian", "latest"), "debian:latest"),
        (ImageName(HUB_HOST, "library/debian", Digest.parse(DIGEST)), f"debian@{DIGEST}"),
        (ImageName(HUB_HOST, "grafana/loki", "3"), "grafana/loki:3"),
        (ImageName(HUB_HOST, "library/x.y", "1"), "x.y:1"),
        (ImageName(HUB_HOST, "library/a/b", "1"), "library/a/b:1"),
        (ImageName(HUB_HOST, "x.y/name", "1"), "docker.io/x.y/name:1"),
        (ImageName(HUB_HOST, "localhost/name", "1"), "docker.io/localhost/name:1"),
        (ImageName("ghcr.io", "owner/name", "1"), "ghcr.io/owner/name:1"),
        (ImageName("localhost:5000", "name", "1"), "localhost:5000/name:1"),
    ],
    ids=lambda value: str(value),
)
def test_name_is_written_as_users_write_it(image: ImageName, text: str) -> None:
    assert str(image) == text
    assert ImageName.parse(text) == image
