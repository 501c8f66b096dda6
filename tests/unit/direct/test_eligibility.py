"""Clients are received without mitmproxy where that makes no difference to anybody, and nowhere else."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.clients.draining import ClientGroup
from hubcache.clients.limits import ClientLimits
from hubcache.direct.connection import DirectConnection, DirectDependencies
from hubcache.direct.eligibility import Front, permitted
from hubcache.mitm.interception import Interception
from hubcache.oci.registry import HUB_HOST, Registry
from mitmproxy import addons
from mitmproxy.addons.dumper import Dumper
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode
from support.mitm import taddons

TABLE = Interception([Registry.parse(HUB_HOST), Registry.parse("ghcr.io")])
REVERSE = f"reverse:https://{HUB_HOST}@5000"
OURS = {"connection_strategy": "lazy", "upstream_cert": False, "http2": False, "allow_hosts": TABLE.allow_hosts}
"""What this program sets itself."""
INDIFFERENT = {
    "allow_hosts": ["example"],
    "block_global": False,
    "cert_passphrase": "secret",
    "certs": ["/etc/leaf.pem"],
    "confdir": "/etc/ca",
    "connection_strategy": "lazy",
    "http2": False,
    "key_size": 4096,
    "listen_host": "::1",
    "listen_port": 3128,
    "mode": ["regular@3128", REVERSE],
    "scripts": ["cache.py"],
    "ssl_insecure": True,
    "ssl_verify_upstream_trusted_ca": "/etc/ca.pem",
    "ssl_verify_upstream_trusted_confdir": "/etc/ca",
    "tcp_timeout": 60,
    "upstream_cert": False,
}
"""Values of options that change nothing about an answer, or that are looked at elsewhere."""


@cache
def options_of_mitmdump() -> list[tuple[str, Any, Any, list[str] | None]]:
    """Name, type, default and choices of each."""
    with taddons.context(*addons.default_addons()[1:], Dumper()) as known:
        return [(name, one.typespec, one.default, one.choices) for name, one in known.options._options.items()]


def options(*, has_dumper: bool = True, **changes: Any) -> Options:
    """mitmproxy's options, checked by no addon."""
    made = Options()
    for name, kind, default, choices in options_of_mitmdump():
        if name not in made and (has_dumper or name not in ("flow_detail", "dumper_filter")):
            made.add_option(name, kind, default, "", choices)
    made.add_option("hubcache_tag_ttl", str, "60", "")
    made.update(**OURS)
    made.update(**changes)
    return made


def is_permitted(*heard: str, **changes: Any) -> bool:
    """Whether clients are ours with these options of mitmdump, while another addon hears these hooks."""
    return permitted(options(**changes), heard.__contains__)


def other_value(kind: Any, default: Any, choices: list[str] | None) -> Any:
    """Any value of an option but its default."""
    if choices:
        return next(choice for choice in choices if choice != default)
    if kind is bool:
        return not default
    if "int" in str(kind):
        return (default or 0) + 1
    return [*default, "other"] if isinstance(default, list | tuple) else f"{default or ''}other"


# -- whether it may be at all


@pytest.mark.parametrize(("detail", "expected"), [(0, True), (1, True), (2, False), (3, False), (4, False)])
def test_a_line_for_each_flow_may_be_shown_and_no_more(detail: int, expected: bool) -> None:
    assert is_permitted(flow_detail=detail) is expected


def test_program_that_shows_flows_in_a_window_has_all_of_them() -> None:
    """mitmweb and mitmproxy have no dumper."""
    assert not permitted(options(has_dumper=False), lambda _: False)


@pytest.mark.parametrize("name", INDIFFERENT)
def test_option_that_changes_no_answer_does_not_matter(name: str) -> None:
    assert is_permitted(**{name: INDIFFERENT[name]})


def test_options_of_this_program_do_not_matter() -> None:
    assert is_permitted(hubcache_tag_ttl="0")


@pytest.mark.parametrize(
    "change",
    [
        {"anticache": True},
        {"anticomp": True},
        {"block_list": ["/~u example/404"]},
        {"block_private": True},
        {"body_size_limit": "1m"},
        {"dumper_filter": "~u manifests"},
        {"hardump": "/tmp/flows.har"},
        {"ignore_hosts": ["docker"]},
        {"map_local": ["/~u x/y"]},
        {"map_remote": ["|x|y"]},
        {"modify_body": ["/x/y"]},
        {"modify_headers": ["/x/y"]},
        {"proxyauth": "a:b"},
        {"request_client_cert": True},
        {"save_stream_file": "/tmp/flows"},
        {"server_replay": ["/tmp/flows"]},
        {"stickyauth": "."},
        {"stickycookie": "."},
        {"store_streamed_bodies": True},
        {"stream_large_bodies": "1m"},
        {"tcp_hosts": ["docker"]},
        {"tls_version_client_min": "TLS1_3"},
        {"validate_inbound_headers": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_option_that_mitmproxy_obeys_leaves_all_to_it(change: dict[str, Any]) -> None:
    assert is_permitted()
    assert not is_permitted(**change)


def test_option_of_which_nothing_is_known_leaves_all_to_mitmproxy() -> None:
    others = [one for one in options_of_mitmdump() if one[0] not in {*INDIFFERENT, "flow_detail"}]
    assert len(others) > 50
    assert [name for name, *how in others if is_permitted(**{name: other_value(*how)})] == []


@pytest.mark.parametrize(
    "hook",
    [
        *("client_connected", "client_disconnected", "next_layer", "http_connect", "http_connected", "tls_clienthello"),
        *("tls_start_client", "tls_established_client", "tls_failed_client", "requestheaders", "request"),
        *("responseheaders", "response", "error"),
    ],
)
def test_addon_that_would_hear_of_a_client_leaves_all_to_mitmproxy(hook: str) -> None:
    assert not is_permitted(hook)


def test_addon_that_hears_of_other_things_does_not_matter() -> None:
    assert is_permitted("load", "running", "configure", "done", "server_connect", "tls_start_server", "tcp_message")


# -- who is received


def front(*, is_ordinary: bool = True, blocks: bool = True) -> Front:
    """The front of a proxy for two registries; `is_ordinary` is what tells whether CONNECTs may be answered."""
    nothing: Any = SimpleNamespace(permitted=is_ordinary)
    return Front(
        DirectDependencies(TABLE, nothing, nothing, nothing, 60.0, None, ClientLimits(), ClientGroup()),
        options(block_global=blocks),
    )


def is_received(mode: str, client: str = "127.0.0.1", at: Front | None = None) -> bool:
    """Whether a client at this address who came to such a door is received without mitmproxy."""
    server: Any = SimpleNamespace(mode=ProxyMode.parse(mode))
    received = (at or front()).receive(server, (client, 50_000))
    assert received is None or isinstance(received, DirectConnection)
    return received is not None


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("regular", True),
        ("regular@3128", True),
        (REVERSE, True),
        ("reverse:https://GHCR.io:443", True),
        ("reverse:https://auth.docker.io", True),
        (f"reverse:http://{HUB_HOST}:443", False),
        (f"reverse:tls://{HUB_HOST}:443", False),
        (f"reverse:tcp://{HUB_HOST}:443", False),
        (f"reverse:https://{HUB_HOST}:8443", False),
        ("reverse:https://quay.io", False),
        ("upstream:http://proxy.example:3128", False),
        ("transparent", False),
        ("socks5", False),
    ],
)
async def test_doors_of_registries_are_ours_and_others_mitmproxys(mode: str, expected: bool) -> None:
    assert is_received(mode) is expected


@pytest.mark.parametrize("mode", ["regular", REVERSE])
async def test_nobody_is_received_while_connections_are_not_set_up_here(mode: str) -> None:
    assert not is_received(mode, at=front(is_ordinary=False))


@pytest.mark.parametrize("mode", ["regular", REVERSE])
@pytest.mark.parametrize("client", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "2001:4860::1%eth0"])
async def test_client_from_the_internet_is_mitmproxys_to_turn_away(client: str, mode: str) -> None:
    assert not is_received(mode, client)
    assert is_received(mode, client, front(blocks=False))


@pytest.mark.parametrize(
    "client",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.1.2", "169.254.1.2", "100.64.1.2"),
        *("::1", "fd00::1", "fe80::1%eth0", "::ffff:127.0.0.1", "::ffff:10.1.2.3"),
    ],
)
async def test_client_of_the_own_network_is_received(client: str) -> None:
    assert is_received("regular", client)
