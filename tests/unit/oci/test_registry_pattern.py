"""Patterns of the registries that clients may name."""

import pytest
from hubcache.oci.errors import ConfigError
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.oci.registry_pattern import RegistryPattern, registry_named


def permitted(pattern: str, namespace: str) -> str | None:
    """Return the upstream of a registry that a client names; None where the pattern does not permit it."""
    registry = registry_named(namespace)
    if registry is None or not RegistryPattern.parse(pattern).matches(registry.hostname, registry.port):
        return None
    assert registry.is_named_by_client
    return registry.upstream


@pytest.mark.parametrize(
    ("pattern", "namespace", "upstream"),
    [
        ("*", "ghcr.io", "https://ghcr.io"),
        ("*", "GHCR.io:443", "https://ghcr.io"),
        ("*", "registry.example.com:5000", "https://registry.example.com:5000"),
        ("*", "docker.io", f"https://{HUB_HOST}"),
        ("*", "index.docker.io", f"https://{HUB_HOST}"),
        ("*.example.com", "registry.example.com", "https://registry.example.com"),
        (" *.Example.com ", "a.b.example.com", "https://a.b.example.com"),
        ("*.example.com:5000", "registry.example.com:5000", "https://registry.example.com:5000"),
        ("*.example.com:*", "registry.example.com:5000", "https://registry.example.com:5000"),
        ("*.team.internal", "registry.team.internal", "https://registry.team.internal"),
    ],
)
def test_matching_namespace_is_a_registry_reached_by_https(pattern: str, namespace: str, upstream: str) -> None:
    assert permitted(pattern, namespace) == upstream


@pytest.mark.parametrize(
    ("pattern", "namespace"),
    [
        ("*.example.com", "example.com"),
        ("*.example.com", "registry.example.com:5000"),
        ("*.example.com:5000", "registry.example.com"),
        ("*.example.com", "badexample.com"),
        ("*.example.com", "registry.example.com.evil.org"),
    ],
)
def test_pattern_matches_hosts_below_its_domain_at_its_port_only(pattern: str, namespace: str) -> None:
    assert permitted(pattern, namespace) is None


@pytest.mark.parametrize("port", ["", ":443", ":2375"])
@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "10.0.0.1", "[::1]"),
        *("[fd00::1]", "::1", "docker", "metadata.google.internal", "printer.local", "a.localhost", "nas.lan"),
        *("router.home.arpa", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
    ],
)
def test_addresses_and_private_names_match_no_pattern(host: str, port: str) -> None:
    assert permitted("*", host + port) is None


@pytest.mark.parametrize(
    "namespace",
    [
        *("", " ", "ghcr.io=http://127.0.0.1:2375", "ghcr.io/", "ghcr.io/v2", "user@ghcr.io", "https://ghcr.io"),
        *(
            "ghcr.io:0",
            "ghcr.io:65536",
            "ghcr.io:0443",
            "ghcr.io:",
            "ghcr.io.",
            "-a.io",
            "*.io",
            "gh\ncr.io",
            "ghcr.io\n",
        ),
        *("ghcr.io?x", "ghcr.io#x", "bücher.example", "a" * 64 + ".io", "a." * 130 + "io", "%67hcr.io", "ghcr.io\x00"),
    ],
)
def test_malformed_namespace_is_no_registry(namespace: str) -> None:
    assert registry_named(namespace) is None


@pytest.mark.parametrize(
    "text",
    [
        *("*.com", "*.co.uk", "*.github.io", "*.lan", "*.", "**", "*example.com", "a.*.com", "*.example.com:0"),
        *(
            "*.example.com:x",
            "*.example.com:",
            "*.example.com=https://example.com",
            "*.10.0.0.1",
            "*:443",
            "*=http://x",
        ),
    ],
)
def test_malformed_pattern_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected \*|name a domain below it"):
        RegistryPattern.parse(text)


def test_configured_registry_differs_from_the_same_one_named_by_a_client() -> None:
    assert registry_named("ghcr.io") != Registry.parse("ghcr.io")
