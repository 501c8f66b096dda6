"""Clients bypass mitmproxy where neither an option nor an addon of the user needs it, and nowhere else."""

from functools import cache
from typing import Any

import pytest
from hubcache.direct.eligibility import NOTHING, Bypass, Eligibility, decide
from hubcache.mitm import tls_key_log
from hubcache.mitm.interception import Interception
from hubcache.oci.registry import HUB_HOST, Registry
from mitmproxy import addons
from mitmproxy.addons.dumper import Dumper
from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode
from support.mitm import taddons

REGISTRIES = Interception([Registry.parse(HUB_HOST), Registry.parse("ghcr.io")])
MIRROR = f"reverse:https://{HUB_HOST}@5000"
DEFAULTS = {
    "connection_strategy": "lazy",
    "upstream_cert": False,
    "http2": False,
    "allow_hosts": REGISTRIES.allow_hosts,
}
"""What this program sets itself."""
EVERYTHING = Bypass(connect=True, tls=True, requests=True)
NEUTRAL = {
    "keep_host_header": True,
    "block_global": False,
    "cert_passphrase": "secret",
    "certs": ["/etc/leaf.pem"],
    "confdir": "/etc/ca",
    "connection_strategy": "lazy",
    "http2": False,
    "key_size": 4096,
    "listen_host": "::1",
    "listen_port": 3128,
    "mode": ["regular@3128", MIRROR],
    "scripts": ["cache.py"],
    "ssl_insecure": True,
    "ssl_verify_upstream_trusted_ca": "/etc/ca.pem",
    "ssl_verify_upstream_trusted_confdir": "/etc/ca",
    "tcp_timeout": 60,
    "upstream_cert": False,
}
"""Values of options that change nothing about an answer."""
LOOKED_AT = {"allow_hosts", "flow_detail"}
"""Options some of whose values change nothing."""


@cache
def mitmdump_options() -> list[tuple[str, Any, Any, list[str] | None]]:
    """Return name, type, default and choices of each option."""
    with taddons.context(*addons.default_addons()[1:], Dumper()) as context:
        return [(name, one.typespec, one.default, one.choices) for name, one in context.options._options.items()]


def options(*, has_dumper: bool = True, **changes: Any) -> Options:
    """Return mitmproxy's options, which no addon checks."""
    made = Options()
    for name, kind, default, choices in mitmdump_options():
        if name not in made and (has_dumper or name not in ("flow_detail", "dumper_filter")):
            made.add_option(name, kind, default, "", choices)
    made.add_option("hubcache_tag_ttl", str, "60", "")
    made.update(**DEFAULTS)
    made.update(**changes)
    return made


def bypass(*hooks: str, has_dumper: bool = True, **changes: Any) -> Bypass:
    """Return what bypasses mitmproxy with these options, while an addon listens to these hooks."""
    return decide(options(has_dumper=has_dumper, **changes), hooks.__contains__, REGISTRIES.allow_hosts)


def other_value(kind: Any, default: Any, choices: list[str] | None) -> Any:
    """Return a value of an option that is not its default."""
    if choices:
        return next(choice for choice in choices if choice != default)
    if kind is bool:
        return not default
    if "int" in str(kind):
        return (default or 0) + 1
    return [*default, "other"] if isinstance(default, list | tuple) else f"{default or ''}other"


# -- options


def test_everything_bypasses_mitmproxy_by_default() -> None:
    assert bypass() == EVERYTHING


@pytest.mark.parametrize(("detail", "expected"), [(0, True), (1, True), (2, False), (3, False), (4, False)])
def test_one_line_for_each_flow_may_be_shown_and_no_more(detail: int, expected: bool) -> None:
    assert bypass(flow_detail=detail) == Bypass(connect=True, tls=True, requests=expected)


def test_program_that_shows_flows_in_a_window_gets_them() -> None:
    """mitmweb and mitmproxy have no dumper."""
    assert bypass(has_dumper=False) == Bypass(connect=True, tls=True, requests=False)


@pytest.mark.parametrize("name", NEUTRAL)
def test_option_that_changes_no_answer_does_not_matter(name: str) -> None:
    assert bypass(**{name: NEUTRAL[name]}) == EVERYTHING


def test_options_of_this_program_do_not_matter() -> None:
    assert bypass(hubcache_tag_ttl="0") == EVERYTHING


@pytest.mark.parametrize(
    "change",
    [
        {"anticache": True},
        {"anticomp": True},
        {"block_list": ["/~u example/404"]},
        {"body_size_limit": "1m"},
        {"dumper_filter": "~u manifests"},
        {"hardump": "/tmp/flows.har"},
        {"map_local": ["/~u x/y"]},
        {"map_remote": ["|x|y"]},
        {"modify_body": ["/x/y"]},
        {"modify_headers": ["/x/y"]},
        {"save_stream_file": "/tmp/flows"},
        {"server_replay": ["/tmp/flows"]},
        {"stickyauth": "."},
        {"stickycookie": "."},
        {"store_streamed_bodies": True},
        {"stream_large_bodies": "1m"},
        {"validate_inbound_headers": False},
    ],
    ids=lambda change: next(iter(change)),
)
def test_option_about_flows_leaves_requests_to_mitmproxy(change: dict[str, Any]) -> None:
    assert bypass(**change) == Bypass(connect=True, tls=True, requests=False)


@pytest.mark.parametrize(
    "change",
    [{"ignore_hosts": ["docker"]}, {"tcp_hosts": ["docker"]}, {"proxyauth": "a:b"}, {"allow_hosts": ["example"]}],
    ids=lambda change: next(iter(change)),
)
def test_option_about_tunnels_leaves_connect_and_requests_to_mitmproxy(change: dict[str, Any]) -> None:
    assert bypass(**change) == Bypass(connect=False, tls=True, requests=False)


def test_connection_before_the_request_leaves_connect_and_requests_to_mitmproxy() -> None:
    assert bypass(connection_strategy="eager") == Bypass(connect=False, tls=True, requests=False)


@pytest.mark.parametrize(
    "change",
    [
        {"http2": True},
        {"add_upstream_certs_to_client_chain": True, "upstream_cert": True},
        {"request_client_cert": True},
        {"ciphers_client": "ECDHE-RSA-AES128-GCM-SHA256"},
        {"tls_version_client_min": "TLS1_3"},
        {"tls_version_client_max": "TLS1_2"},
        {"tls_ecdh_curve_client": "secp256r1"},
        {"block_private": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_option_about_tls_or_connections_leaves_everything_to_mitmproxy(change: dict[str, Any]) -> None:
    assert bypass(**change) == NOTHING


def test_certificate_of_the_upstream_leaves_tls_to_mitmproxy() -> None:
    assert not bypass(upstream_cert=True).tls


def test_log_of_tls_keys_leaves_tls_to_mitmproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_key_log, "is_enabled", lambda: True)
    assert bypass() == Bypass(connect=True, tls=False, requests=True)
    eligibility = eligible()
    assert not is_direct("regular", at=eligibility)
    assert is_direct(MIRROR, at=eligibility)


def test_unknown_option_that_is_changed_leaves_everything_to_mitmproxy() -> None:
    made = options()
    made.add_option("option_of_a_later_mitmproxy", bool, False, "")
    assert decide(made, lambda _: False, REGISTRIES.allow_hosts) == EVERYTHING
    made.update(option_of_a_later_mitmproxy=True)
    assert decide(made, lambda _: False, REGISTRIES.allow_hosts) == NOTHING


def test_no_option_of_mitmdump_but_the_neutral_ones_permits_direct_connections() -> None:
    others = [one for one in mitmdump_options() if one[0] not in {*NEUTRAL, *LOOKED_AT}]
    assert len(others) > 50
    assert [name for name, *how in others if bypass(**{name: other_value(*how)}).requests] == []


# -- addons of the user


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        *((hook, Bypass(connect=False, tls=True)) for hook in ("next_layer", "http_connect", "http_connected")),
        ("tls_start_client", Bypass(connect=True, tls=False)),
        *(
            (hook, Bypass(connect=True, tls=True))
            for hook in (
                *("client_connected", "client_disconnected", "tls_clienthello", "tls_established_client"),
                *("tls_failed_client", "requestheaders", "request", "responseheaders", "response", "error"),
            )
        ),
    ],
)
def test_addon_that_listens_to_clients_leaves_its_hooks_to_mitmproxy(hook: str, expected: Bypass) -> None:
    assert bypass(hook) == expected


def test_addon_that_listens_to_other_hooks_does_not_matter() -> None:
    hooks = ("load", "running", "configure", "done", "server_connect", "tls_start_server", "tcp_message")
    assert bypass(*hooks) == EVERYTHING


# -- the decision over time


class Scripts:
    """Addons of the user that listen to `hooks`."""

    changes = 0
    hooks: tuple[str, ...] = ()

    def listen_to(self, hook: str) -> bool:
        return hook in self.hooks


def eligible(scripts: Scripts | None = None, **changes: Any) -> Eligibility:
    made = Eligibility(options(**changes), scripts or Scripts())  # type: ignore[arg-type]
    made.intercept(REGISTRIES)
    return made


def test_decision_follows_addons_options_and_registries() -> None:
    scripts, current = Scripts(), options()
    eligibility = Eligibility(current, scripts)  # type: ignore[arg-type]
    assert eligibility.bypass == Bypass(connect=False, tls=True)  # `allow_hosts` names registries that are not known
    eligibility.intercept(REGISTRIES)
    assert eligibility.bypass == EVERYTHING
    scripts.hooks, scripts.changes = ("request",), 1
    assert not eligibility.bypass.requests
    scripts.hooks, scripts.changes = (), 2
    assert eligibility.bypass == EVERYTHING
    current.update(anticache=True)
    eligibility.options_changed()
    assert not eligibility.bypass.requests


def test_decision_is_kept_while_nothing_changes() -> None:
    eligibility = eligible()
    assert eligibility.bypass is eligibility.bypass


# -- listeners and clients


def is_direct(mode: str, client: str = "127.0.0.1", at: Eligibility | None = None) -> bool:
    """Whether a client at this address gets a direct connection at such a listener."""
    return (at or eligible()).is_direct(ProxyMode.parse(mode), client)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("regular", True),
        ("regular@3128", True),
        (MIRROR, True),
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
def test_listeners_of_registries_are_direct_and_others_are_not(mode: str, expected: bool) -> None:
    eligibility = eligible()
    assert is_direct(mode, at=eligibility) is expected
    assert eligibility.answers_connect(ProxyMode.parse(mode)) is expected


@pytest.mark.parametrize("mode", ["regular", MIRROR])
def test_no_client_is_direct_where_mitmproxy_answers_connect(mode: str) -> None:
    eligibility = eligible(ignore_hosts=["docker"])
    assert not is_direct(mode, at=eligibility)
    assert not eligibility.answers_connect(ProxyMode.parse(mode))


@pytest.mark.parametrize("mode", ["regular", MIRROR])
@pytest.mark.parametrize("client", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "2001:4860::1%eth0"])
def test_client_of_the_internet_is_left_to_mitmproxy_which_refuses_it(client: str, mode: str) -> None:
    assert not is_direct(mode, client)
    assert is_direct(mode, client, eligible(block_global=False))


@pytest.mark.parametrize(
    "client",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.1.2", "169.254.1.2", "100.64.1.2"),
        *("::1", "fd00::1", "fe80::1%eth0", "::ffff:127.0.0.1", "::ffff:10.1.2.3"),
    ],
)
def test_client_of_the_own_network_is_direct(client: str) -> None:
    assert is_direct("regular", client)
