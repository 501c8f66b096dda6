"""Platforms as users write them."""

import pytest
from hubcache.control.errors import InvalidCommand
from hubcache.control.platforms import parse_platforms, platform_name
from hubcache.oci.digest import Digest
from hubcache.oci.manifest import Descriptor
from hubcache.serve.prefetch import select_platforms


def selected(*wanted: str) -> list[str | None]:
    """Return which platforms of an index are selected, with the variants that indexes have or omit."""
    offered = ("linux/amd64/", "linux/arm64/", "linux/arm64/v8", "linux/arm/v5", "linux/arm/v7", "windows/amd64/")
    children = tuple(Descriptor(Digest.of(each.encode()), 1, True, each) for each in offered)
    return [child.platform for child in select_platforms(children, parse_platforms(wanted))]


def test_platform_without_a_variant_means_all_variants() -> None:
    assert selected("linux/arm") == ["linux/arm/v5", "linux/arm/v7"]
    assert selected("linux/arm64") == ["linux/arm64/", "linux/arm64/v8"]


def test_variant_that_indexes_omit_is_found() -> None:
    assert selected("linux/arm64/v8") == ["linux/arm64/", "linux/arm64/v8"]
    assert selected("linux/amd64/v1") == ["linux/amd64/"]


def test_variant_is_selected_alone() -> None:
    assert selected("linux/arm/v7", "windows/amd64") == ["linux/arm/v7", "windows/amd64/"]
    assert selected("linux/arm/v6") == []


def test_no_platform_means_all() -> None:
    assert len(selected()) == 6
    assert parse_platforms(None) is parse_platforms([]) is None


@pytest.mark.parametrize(
    "text", ["", "linux", "amd64", "linux/", "/amd64", "linux/amd64/", "linux/arm/v7/x", "Linux/amd64", "linux/a b"]
)
def test_malformed_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidCommand, match="is not a platform"):
        parse_platforms([text])


def test_name_has_no_empty_variant() -> None:
    assert [platform_name(each) for each in ("linux/amd64/", "linux/arm/v7")] == ["linux/amd64", "linux/arm/v7"]
