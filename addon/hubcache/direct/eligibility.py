"""Decides which clients bypass mitmproxy.

A client may be served without mitmproxy where no addon of the user listens to its hooks and no option of the user needs
a flow. Clients of registries open a connection for each request: in mitmproxy that is a handler with three tasks, six
layers, some fifteen hooks and a flow, which take more than twice the time of a direct connection.

All options, hooks and modes that matter are checked here, and nowhere else. If the user changed an option that is not
listed below, mitmproxy serves all clients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode, RegularMode, ReverseMode

from ..mitm import tls_key_log
from ..mitm.interception import Interception
from ..mitm.other_addons import OtherAddons
from ..oci.address import parse_address

_CONNECT_HOOKS = ("next_layer", "http_connect", "http_connected")
_TLS_HOOKS = ("tls_start_client",)
_CLIENT_HOOKS = (
    *("client_connected", "client_disconnected", "tls_clienthello", "tls_established_client", "tls_failed_client"),
    *("requestheaders", "request", "responseheaders", "response", "error"),
)
"""Hooks about clients. With a listener to the first, mitmproxy answers CONNECT; to the second, it begins TLS; to any of
them, it serves all clients."""

_NEUTRAL = frozenset(
    {
        *("allow_hosts", "block_global", "cert_passphrase", "certs", "confdir", "connection_strategy", "flow_detail"),
        *("http2", "keep_host_header", "key_size", "listen_host", "listen_port", "mode", "scripts", "ssl_insecure"),
        *("ssl_verify_upstream_trusted_ca", "ssl_verify_upstream_trusted_confdir", "tcp_timeout"),
        *("termlog_verbosity", "upstream_cert"),
    }
)
"""Options that change no answer, or whose values are looked at here."""
_ABOUT_FLOWS = frozenset(
    {
        *("anticache", "anticomp", "block_list", "body_size_limit", "client_replay", "content_view_lines_cutoff"),
        *("dumper_default_contentview", "dumper_filter", "export_preserve_original_ip", "hardump", "intercept"),
        *("intercept_active", "map_local", "map_remote", "modify_body", "modify_headers"),
        *("normalize_outbound_headers", "readfile_filter", "rfile", "save_stream_file", "save_stream_filter"),
        *("server_replay", "showhost", "stickyauth", "stickycookie", "store_streamed_bodies", "stream_large_bodies"),
        *("validate_inbound_headers", "view_filter", "view_order", "view_order_reversed"),
        *("web_columns", "web_debug", "web_host", "web_open_browser", "web_password", "web_port", "web_static_viewer"),
    }
)
"""Options about requests and answers, for which mitmproxy needs its flows; CONNECT and TLS stay the same."""
_ABOUT_TUNNELS = frozenset({"ignore_hosts", "proxyauth", "tcp_hosts"})
"""Options about CONNECT; TLS stays the same."""


@dataclass(frozen=True, slots=True)
class Bypass:
    """The tasks that this program does in place of mitmproxy."""

    connect: bool = False
    """Whether this program answers CONNECTs, and begins HTTP at mirrors."""
    tls: bool = False
    """Whether this program makes the TLS connections with clients."""
    requests: bool = False
    """Whether this program answers requests."""


NOTHING = Bypass()


def decide(options: Options, listens: Callable[[str], bool], allow_hosts: list[str]) -> Bypass:
    """Return what may bypass mitmproxy with these options.

    `listens` returns whether an addon of the user implements a hook; `allow_hosts` is the value of that option that
    this program sets itself.
    """
    changed = {name for name in set(options.keys()) if options.has_changed(name) and not name.startswith("hubcache_")}
    tls = (
        changed <= _NEUTRAL | _ABOUT_FLOWS | _ABOUT_TUNNELS
        and not (options.http2 or options.upstream_cert or tls_key_log.is_enabled())
        and not any(map(listens, _TLS_HOOKS))
    )
    connect = (
        changed <= _NEUTRAL | _ABOUT_FLOWS
        and options.connection_strategy == "lazy"
        and options.allow_hosts == allow_hosts
        and not options.http2
        and not any(map(listens, _CONNECT_HOOKS))
    )
    has_dumper = "flow_detail" in options  # only mitmdump limits what it shows of a flow
    requests = (
        connect
        and changed <= _NEUTRAL
        and has_dumper
        and options.flow_detail <= 1
        and not any(map(listens, _TLS_HOOKS + _CLIENT_HOOKS))
    )
    return Bypass(connect, tls, requests)


class Eligibility:
    """The decision for the present options and addons, made anew when one of them changes."""

    def __init__(self, options: Options, others: OtherAddons) -> None:
        self._options = options
        self._others = others
        self._interception = Interception(())
        self._decided_at = -1
        self._bypass = NOTHING
        self._direct: dict[str, bool] = {}
        """Whether clients get direct connections, by the specification of a mode; emptied with each decision."""

    def intercept(self, interception: Interception) -> None:
        """Serve the registries of `interception` from now on."""
        self._interception = interception
        self.options_changed()

    def options_changed(self) -> None:
        """Decide anew when the decision is next needed."""
        self._decided_at = -1

    @property
    def bypass(self) -> Bypass:
        """What may bypass mitmproxy at present."""
        if self._decided_at != self._others.changes:
            self._decided_at = self._others.changes
            self._bypass = decide(self._options, self._others.listen_to, self._interception.allow_hosts)
            self._direct = {}
        return self._bypass

    def answers_connect(self, mode: ProxyMode) -> bool:
        """Whether CONNECT is answered, or HTTP begun, at a listener of this mode."""
        return self.bypass.connect and self._is_served(mode)

    def is_direct(self, mode: ProxyMode, client: str) -> bool:
        """Whether a client at the address `client` gets a direct connection at a listener of this mode."""
        bypass = self.bypass
        is_direct = self._direct.get(mode.full_spec)
        if is_direct is None:
            is_direct = bypass.requests and self._is_served(mode) and (bypass.tls or not isinstance(mode, RegularMode))
            self._direct[mode.full_spec] = is_direct
        # mitmproxy refuses clients of the internet, with a line in the log.
        return is_direct and not (self._options.block_global and _is_global(client))

    def _is_served(self, mode: Any) -> bool:
        if isinstance(mode, ReverseMode):
            return mode.scheme == "https" and self._interception.serves(mode)
        return isinstance(mode, RegularMode)


@lru_cache(1 << 12)
def _is_global(address: str) -> bool:
    return parse_address(address).is_global
