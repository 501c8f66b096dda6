"""Which requests are intercepted: by the address of the CONNECT, or by the mirror and its `?ns=`."""

import re

import pytest
from hubcache.mitm.interception import Interception, Place
from hubcache.oci.registry import HUB_HOST, Registry
from hubcache.oci.registry_pattern import RegistryPattern
from hubcache.serve.messages import Listener
from mitmproxy.http import HTTPFlow
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode
from mitmproxy.test import tflow

HUB = Registry.parse("registry-1.docker.io=http://localhost:5001")
GHCR = Registry.parse("ghcr.io")
PORTED = Registry.parse("images.example.net:5443")
TABLE = Interception((HUB, GHCR, PORTED))


def request(mode: str, url: str, host_header: str | None = None) -> HTTPFlow:
    flow = tflow.tflow()
    flow.client_conn.proxy_mode = ProxyMode.parse(mode)
    flow.request.url = url
    if host_header is not None:
        flow.request.headers["Host"] = host_header
    return flow


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://registry-1.docker.io/v2/", Place(HUB, Listener.PROXY)),
        ("https://REGISTRY-1.docker.io/v2/", Place(HUB, Listener.PROXY)),
        ("https://auth.docker.io/token", Place(HUB, Listener.PROXY, is_token_service=True)),
        ("https://index.docker.io/v2/", Place(HUB, Listener.PROXY)),
        ("https://Index.docker.io/v2", Place(HUB, Listener.PROXY)),
        ("https://index.docker.io/v2/library/app/manifests/1?ns=x", Place(HUB, Listener.PROXY)),
        ("https://index.docker.io/v1/search?q=app", None),
        ("https://index.docker.io/v20/", None),
        ("https://index.docker.io:8443/v2/", None),
        ("https://ghcr.io/v2/", Place(GHCR, Listener.PROXY)),
        ("https://images.example.net:5443/v2/", Place(PORTED, Listener.PROXY)),
        ("https://images.example.net/v2/", None),
        ("https://registry-1.docker.io:8443/v2/", None),
        ("http://registry-1.docker.io/v2/", None),
        ("https://docker.io/v2/", None),
        ("http://hub.cache/", Place(HUB, Listener.MIRROR, is_cache=True)),
        ("http://hub.cache/setup", Place(HUB, Listener.MIRROR, is_cache=True)),
        ("https://hub.cache/", None),
        ("https://xregistry-1.docker.io/v2/", None),
        ("https://registry-1.docker.io.example.com/v2/", None),
    ],
)
def test_place_at_the_proxy_depends_on_the_address_of_the_connect(url: str, place: Place | None) -> None:
    assert TABLE.place(request("regular", url)) == place


def test_host_header_is_ignored_at_the_proxy() -> None:
    assert TABLE.place(request("regular", "https://example.com/v2/", "registry-1.docker.io")) is None
    flow = request("regular", "https://registry-1.docker.io/v2/", "ghcr.io")
    assert TABLE.place(flow) == Place(HUB, Listener.PROXY)


@pytest.mark.parametrize(
    ("mode", "query", "place"),
    [
        ("reverse:https://registry-1.docker.io", "", Place(HUB, Listener.MIRROR)),
        ("reverse:https://ghcr.io", "", Place(GHCR, Listener.MIRROR)),
        ("reverse:https://registry-1.docker.io", "?ns=ghcr.io", Place(GHCR, Listener.MIRROR)),
        ("reverse:https://ghcr.io", "?ns=docker.io", Place(HUB, Listener.MIRROR)),
        ("reverse:https://ghcr.io", "?a=b&ns=docker.io", Place(HUB, Listener.MIRROR)),
        ("reverse:https://ghcr.io", "?ns=images.example.net%3A5443", Place(PORTED, Listener.MIRROR)),
        ("reverse:https://ghcr.io", "?ns=quay.io", None),
        ("reverse:https://ghcr.io", "?ns=", Place(GHCR, Listener.MIRROR)),
        ("reverse:https://quay.io", "", None),
        ("reverse:https://quay.io", "?ns=ghcr.io", Place(GHCR, Listener.MIRROR)),
    ],
)
def test_place_at_the_mirror_depends_on_its_target_and_ns(mode: str, query: str, place: Place | None) -> None:
    assert TABLE.place(request(mode, f"http://anything.example/v2/{query}")) == place


@pytest.mark.parametrize(
    ("query", "header", "registry"),
    [
        ("", "ghcr.io", GHCR),
        ("", "docker.io", HUB),
        ("", "", HUB),
        ("", "quay.io", None),
        ("?ns=ghcr.io", "docker.io", GHCR),
        ("?ns=docker.io", "quay.io", HUB),
        ("?ns=quay.io", "ghcr.io", None),
        ("?ns=", "ghcr.io", GHCR),
    ],
)
def test_namespace_header_counts_where_there_is_no_ns(query: str, header: str, registry: Registry | None) -> None:
    flow = request("reverse:https://registry-1.docker.io", f"http://anything.example/v2/{query}")
    flow.request.headers["OCI-Namespace"] = header
    assert TABLE.place(flow) == (None if registry is None else Place(registry, Listener.MIRROR))


def test_token_service_is_intercepted_only_with_the_hub() -> None:
    names_of_the_hub = ["index.docker.io", "auth.docker.io"]
    assert TABLE.hosts == ["registry-1.docker.io", "ghcr.io", "images.example.net", *names_of_the_hub]
    assert Interception((GHCR,)).hosts == ["ghcr.io"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("registry-1.docker.io:443", True),
        ("auth.docker.io:443", True),
        ("index.docker.io:443", True),
        ("images.example.net:5443", True),
        ("images.example.net:443", False),
        ("registry-1.docker.io:4433", False),
        ("registry-1xdocker.io:443", False),
        ("evil.registry-1.docker.io:443", False),
        ("production.cloudflare.docker.com:443", False),
    ],
)
def test_patterns_of_allow_hosts_match_intercepted_addresses_alone(address: str, expected: bool) -> None:
    assert any(re.search(pattern, address, re.IGNORECASE) for pattern in TABLE.allow_hosts) is expected


@pytest.mark.parametrize("address", ["[::1]:443", "::1:443"])
def test_pattern_matches_an_ipv6_registry_however_it_is_written(address: str) -> None:
    table = Interception((Registry.parse("[::1]"),))
    assert any(re.search(pattern, address) for pattern in table.allow_hosts)


@pytest.mark.parametrize(
    ("mode", "served"),
    [
        ("reverse:https://registry-1.docker.io@5000", True),
        ("reverse:https://images.example.net:5443", True),
        ("reverse:https://quay.io@5000", False),
        ("reverse:http://registry-1.docker.io@5000", False),
    ],
)
def test_mirror_must_be_of_a_configured_registry(mode: str, served: bool) -> None:
    parsed = ProxyMode.parse(mode)
    assert isinstance(parsed, ReverseMode)
    assert TABLE.serves(parsed) is served


# -- registries that clients name

ANY = Interception((HUB, GHCR), [RegistryPattern.parse("*")])
BELOW = Interception((HUB, GHCR), [RegistryPattern.parse("*.example.com"), RegistryPattern.parse("*.docker.io")])


@pytest.mark.parametrize(
    ("namespace", "registry"),
    [
        ("quay.io", Registry("quay.io", "https://quay.io", is_named_by_client=True)),
        ("quay.io:5000", Registry("quay.io:5000", "https://quay.io:5000", is_named_by_client=True)),
        ("docker.io", HUB),
        ("ghcr.io", GHCR),
        ("GHCR.io:443", GHCR),
        ("index.docker.io:443", HUB),
        ("localhost:2375", None),
        ("127.0.0.1:2375", None),
        ("metadata.google.internal", None),
        ("quay.io=http://localhost:2375", None),
        ("quay.io%3Dhttp://localhost:2375", None),
    ],
)
@pytest.mark.parametrize("by", ["query", "header"])
def test_namespace_that_a_pattern_permits_is_a_registry(namespace: str, registry: Registry | None, by: str) -> None:
    query = f"?ns={namespace}" if by == "query" else ""
    flow = request(f"reverse:https://{HUB_HOST}", f"http://anything.example/v2/{query}")
    if by == "header":
        flow.request.headers["OCI-Namespace"] = namespace
    assert ANY.place(flow) == (None if registry is None else Place(registry, Listener.MIRROR))


@pytest.mark.parametrize(
    ("url", "registry"),
    [
        ("https://r.example.com/v2/", Registry("r.example.com", "https://r.example.com", is_named_by_client=True)),
        (
            "https://R.example.com/.hubcache/token",
            Registry("r.example.com", "https://r.example.com", is_named_by_client=True),
        ),
        ("https://r.example.com/", None),
        ("https://r.example.com/v20/", None),
        ("https://r.example.com:8443/v2/", None),
        ("https://example.com/v2/", None),
        ("https://docker.io/v2/", None),
        ("http://r.example.com/v2/", None),
        ("https://registry-1.docker.io/anything", HUB),
    ],
)
def test_registry_below_a_domain_is_answered_below_v2_at_the_proxy(url: str, registry: Registry | None) -> None:
    assert BELOW.place(request("regular", url)) == (None if registry is None else Place(registry, Listener.PROXY))


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        (("r.example.com", 443), True),
        (("a.R.example.com", 443), True),
        (("example.com", 443), False),
        (("xexample.com", 443), False),
        (("r.example.com", 22), False),
        (("r.example.com.evil.org", 443), False),
    ],
)
def test_hosts_below_a_domain_are_intercepted(address: tuple[str, int], ours: bool) -> None:
    assert BELOW.has(*address) is ours
    text = f"{address[0]}:{address[1]}"
    assert any(re.search(pattern, text, re.IGNORECASE) for pattern in BELOW.allow_hosts) is ours


def test_any_registry_is_not_intercepted_and_the_ca_is_not_widened() -> None:
    plain = Interception((HUB, GHCR))
    assert (ANY.hosts, ANY.allow_hosts) == (plain.hosts, plain.allow_hosts)
    assert not ANY.has("quay.io", 443)
    assert ANY.place(request("regular", "https://quay.io/v2/")) is None
    assert BELOW.hosts == [*plain.hosts, "example.com", "docker.io"]


def test_mirror_is_of_a_registry_that_is_configured_by_its_name() -> None:
    mode = ProxyMode.parse("reverse:https://r.example.com@5000")
    assert isinstance(mode, ReverseMode)
    assert not BELOW.serves(mode)
