"""Parsing `HOST` and `HOST=UPSTREAM_URL`."""

import pytest
from hubcache.oci.errors import ConfigError
from hubcache.oci.registry import HUB_HOST, HUB_REALM, Registry
from hypothesis import given
from hypothesis import strategies as st

HOSTS = st.from_regex(r"[a-z0-9]{1,10}(-[a-z0-9]{1,5})?(\.[a-z]{2,5}){1,3}", fullmatch=True)
PORTS = st.integers(1, 65535).filter(lambda port: port not in (80, 443))


@given(HOSTS, PORTS | st.none())
def test_host_without_an_upstream_is_reached_by_https(host: str, port: int | None) -> None:
    written = host if port is None else f"{host}:{port}"
    registry = Registry.parse(written)
    assert (registry.host, registry.upstream) == (written, f"https://{written}")
    assert (registry.hostname, registry.port) == (host, port or 443)


@given(HOSTS, st.sampled_from(["http", "https"]), HOSTS, PORTS, st.sampled_from(["", "/"]))
def test_upstream_url_is_parsed(host: str, scheme: str, other: str, port: int, slash: str) -> None:
    registry = Registry.parse(f" {host.upper()} = {scheme}://{other}:{port}{slash} ")
    assert registry == Registry(host, f"{scheme}://{other}:{port}")


@given(HOSTS, PORTS)
def test_text_of_a_registry_is_parsed_to_an_equal_registry(host: str, port: int) -> None:
    registry = Registry.parse(f"{host}=http://localhost:{port}")
    assert Registry.parse(f"{registry.host}={registry.upstream}") == registry


@pytest.mark.parametrize(
    ("text", "host", "upstream"),
    [
        ("ghcr.io:443", "ghcr.io", "https://ghcr.io"),
        ("ghcr.io=https://mirror.example:443", "ghcr.io", "https://mirror.example"),
        ("ghcr.io=http://mirror.example:80/", "ghcr.io", "http://mirror.example"),
        ("ghcr.io=HTTPS://Mirror.Example", "ghcr.io", "https://mirror.example"),
        ("localhost:5000=http://[::1]:5001", "localhost:5000", "http://[::1]:5001"),
        ("[::1]:5000", "[::1]:5000", "https://[::1]:5000"),
    ],
)
def test_default_ports_are_removed_and_ipv6_is_accepted(text: str, host: str, upstream: str) -> None:
    assert Registry.parse(text) == Registry(host, upstream)


def test_hostname_has_no_ipv6_brackets() -> None:
    assert Registry.parse("[::1]:5000").hostname == "::1"


@pytest.mark.parametrize(
    "text",
    ["", " ", "=", "=https://ghcr.io", "ghcr.io=", "ghcr.io= ", "https://ghcr.io", "ghcr.io/library", "ghcr.io?x",
     "ghcr.io#x", "user@ghcr.io", "ghcr.io:99999", "ghcr.io:port", "ghcr.io:", "[::1", "ghcr.io=ghcr.io",
     "ghcr.io=ftp://ghcr.io", "ghcr.io=https://", "ghcr.io=https://ghcr.io/v2", "ghcr.io=https://ghcr.io?x=1",
     "ghcr.io=https://ghcr.io#x", "ghcr.io=https://user:secret@ghcr.io", "ghcr.io=https://ghcr.io:99999",
     "ghcr.io=//ghcr.io"],
)  # fmt: skip
def test_invalid_value_is_refused_with_an_error_that_quotes_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Registry.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["gh cr.io", "ghcr.io,quay.io", "*.docker.io", "gh_cr!.io", "ghcr..io", "-", "gh\x00cr.io"]
)
def test_invalid_host_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Registry.parse(text)


@given(st.text(max_size=40) | st.text("ghcr.io:=/[]@?#%0\udcff", max_size=40))
def test_any_text_is_parsed_or_a_configuration_error(text: str) -> None:
    try:
        registry = Registry.parse(text)
    except ConfigError:
        return
    assert 0 <= registry.port <= 65535
    assert registry.hostname


def test_docker_hub_has_its_namespaces_and_realm_with_any_upstream() -> None:
    hub, other = Registry.parse(f"{HUB_HOST}=http://localhost:5000"), Registry.parse("ghcr.io")
    assert (hub.is_hub, hub.realm, hub.namespace) == (True, HUB_REALM, "docker.io")
    assert (other.is_hub, other.realm, other.namespace) == (False, None, "ghcr.io")
    for namespace in ("docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"):
        assert hub.matches_namespace(namespace)
        assert not other.matches_namespace(namespace)
        for written in (namespace, f"{namespace}:443"):
            assert Registry.parse(written) == Registry(HUB_HOST, f"https://{HUB_HOST}")
    assert other.matches_namespace("GHCR.io")
    assert not hub.matches_namespace("ghcr.io")
