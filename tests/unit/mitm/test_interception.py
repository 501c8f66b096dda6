"""Which requests are intercepted: by the address of the CONNECT, or by the mirror and its `?ns=`."""

import re

import pytest
from hubcache.mitm.interception import Interception, Place
from hubcache.oci.registry import Registry
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
