"""The outbound proxies of the environment, and the exceptions from them."""

import pytest
from hubcache.decide.outbound_proxy import OutboundProxies, OutboundProxy
from hubcache.oci.errors import ConfigError

PROXY = "http://proxy:3128"


def found(scheme: str, host: str, port: int | None = 443, **environment: str) -> str:
    """Return the URL of the proxy for a host, empty for a direct connection."""
    return str(OutboundProxies.from_environment(environment).find(scheme, host, port) or "")


def test_each_scheme_has_its_own_proxy() -> None:
    environment = {"HTTPS_PROXY": "http://one:1", "HTTP_PROXY": "http://two:2"}
    assert (found("https", "host", **environment), found("http", "host", **environment)) == (
        "http://one:1",
        "http://two:2",
    )
    assert found("http", "host", HTTPS_PROXY="http://one:1") == ""
    assert found("https", "host") == ""


def test_lower_case_variable_has_priority_unless_it_is_empty() -> None:
    assert found("https", "host", HTTPS_PROXY="http://one:1", https_proxy="http://two:2") == "http://two:2"
    assert found("https", "host", HTTPS_PROXY="http://one:1", https_proxy="") == "http://one:1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("proxy:3128", OutboundProxy("http", "proxy", 3128)),
        ("http://proxy", OutboundProxy("http", "proxy", 80)),
        ("https://proxy/", OutboundProxy("https", "proxy", 443)),
        ("http://[fd00::1]:3128", OutboundProxy("http", "fd00::1", 3128)),
        ("http://ann:p%40ss:word@proxy:1", OutboundProxy("http", "proxy", 1, "Basic YW5uOnBAc3M6d29yZA==")),
        ("ann@proxy:1", OutboundProxy("http", "proxy", 1, "Basic YW5uOg==")),
    ],
)
def test_url_may_lack_scheme_credentials_and_port(text: str, expected: OutboundProxy) -> None:
    assert OutboundProxy.parse(text, "HTTPS_PROXY") == expected


@pytest.mark.parametrize(
    "text",
    ["socks5://ann:secret@proxy:1", "http://ann:secret@", "http://ann:secret@proxy:port", "http://ann:secret@proxy/path",
     "http://ann:secret@proxy?query", "http://ann:secret@[proxy"],
)  # fmt: skip
def test_invalid_url_is_an_error_that_does_not_contain_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OutboundProxies.from_environment({"HTTPS_PROXY": text})
    assert str(caught.value) == "HTTPS_PROXY: expected http://[USER:PASSWORD@]HOST[:PORT], or https://"
    assert caught.value.__cause__ is None


def test_texts_of_a_proxy_contain_no_credentials() -> None:
    proxies = OutboundProxies.from_environment({"HTTPS_PROXY": "http://ann:secret@[fd00::1]:1", "HTTP_PROXY": PROXY})
    proxy = proxies.find("https", "host", 443)
    assert proxy is not None
    assert proxy.authorization is not None
    assert (str(proxy), str(proxies)) == ("http://[fd00::1]:1", "http://[fd00::1]:1, http://proxy:3128")
    for text in (repr(proxy), repr(proxies)):
        assert "secret" not in text
        assert proxy.authorization.split()[1] not in text


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("example.com", "example.com", 443),
        ("example.com", "EXAMPLE.com.", 443),
        ("example.com", "a.b.example.com", 443),
        (".example.com", "a.example.com", 443),
        ("*.example.com", "a.example.com", 443),
        ("other.org, example.com", "example.com", 443),
        ("other.org example.com", "example.com", 443),
        ("example.com:8443", "example.com", 8443),
        ("*", "example.com", 443),
        ("*:443", "example.com", 443),
        ("10.0.0.0/8", "10.1.2.3", 443),
        ("127.0.0.1", "127.1", 443),
        ("10.1.2.3:443", "10.1.2.3", 443),
        ("fd00::/8", "fd00::1", 443),
        ("[::1]", "::1", 443),
        ("[::1]:443", "[::1]", 443),
    ],
)
def test_no_proxy_names_hosts_that_are_reached_directly(entry: str, host: str, port: int) -> None:
    assert found("https", host, port, https_proxy=PROXY, NO_PROXY=entry) == ""


@pytest.mark.parametrize(
    ("entry", "host", "port"),
    [
        ("example.com", "notexample.com", 443),
        ("example.com", "example.com.evil.org", 443),
        (".example.com", "example.com", 443),
        ("*.example.com", "example.com", 443),
        ("example.com:8443", "example.com", 443),
        ("*:80", "example.com", 443),
        ("10.0.0.0/8", "11.1.2.3", 443),
        ("10.0.0.0/8", "10.example.com", 443),
        ("10.1.2.3:443", "10.1.2.3", 80),
        ("[::1]:443", "::1", 80),
        (", ,", "example.com", 443),
        (".", "example.com", 443),
    ],
)
def test_other_hosts_are_reached_through_the_proxy(entry: str, host: str, port: int) -> None:
    assert found("https", host, port, https_proxy=PROXY, NO_PROXY=entry) == PROXY
