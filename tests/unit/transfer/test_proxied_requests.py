"""Requests through an outbound proxy: their headers, and the targets that are refused."""

import pytest
from hubcache.decide.outbound_proxy import OutboundProxies, OutboundProxy
from hubcache.oci.errors import BadUpstream
from hubcache.transfer.proxied_requests import check_target, proxy_arguments
from yarl import URL

HEADERS = {"Authorization": "Bearer registry"}
PROXIES = OutboundProxies.all_through(OutboundProxy("http", "fd00::1", 3128, "Basic secret"))
REGISTRY = URL("https://registry.example")


def test_credentials_of_the_proxy_go_with_the_connect_of_an_https_request() -> None:
    arguments = proxy_arguments(PROXIES, REGISTRY / "v2/", HEADERS)
    assert arguments["proxy"] == URL("http://[fd00::1]:3128")
    assert arguments["proxy_headers"] == {"Proxy-Authorization": "Basic secret"}
    assert arguments["headers"] == HEADERS


def test_credentials_of_the_proxy_go_with_an_http_request() -> None:
    arguments = proxy_arguments(PROXIES, URL("http://registry.example/v2/"), HEADERS)
    assert arguments["headers"] == HEADERS | {"Proxy-Authorization": "Basic secret"}
    assert "proxy_headers" not in arguments
    assert HEADERS == {"Authorization": "Bearer registry"}


def test_direct_request_has_its_headers_only() -> None:
    assert proxy_arguments(OutboundProxies(), REGISTRY, HEADERS) == {"headers": HEADERS}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "localhost", "[::1]", "169.254.169.254", "2130706433"])
def test_registry_may_not_name_a_local_address(host: str) -> None:
    with pytest.raises(BadUpstream):
        check_target(URL(f"https://{host}/blob"), REGISTRY)


@pytest.mark.parametrize(
    ("target", "registry"),
    [
        ("https://cdn.example/blob", "https://registry.example"),
        ("https://10.0.0.1/blob", "https://registry.example"),
        ("https://127.0.0.1:5002/blob", "https://localhost:5001"),
        ("https://localhost:5001/blob", "https://localhost:5001"),
    ],
)
def test_registry_may_name_other_hosts(target: str, registry: str) -> None:
    check_target(URL(target), URL(registry))
