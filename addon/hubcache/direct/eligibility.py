"""Which clients are received without mitmproxy: those whose flows nobody changes or looks into.

Clients of registries make a connection for each request. In mitmproxy that is a handler with three tasks, six layers,
some fifteen hooks and a flow: more than twice the time of all that `reception` does for them.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from mitmproxy.options import Options
from mitmproxy.proxy.mode_servers import ServerInstance
from mitmproxy.proxy.mode_specs import RegularMode, ReverseMode

from ..oci.address import parse_address
from .connection import DirectConnection, DirectDependencies

HOOKS = (
    *("client_connected", "client_disconnected", "next_layer", "http_connect", "http_connected", "tls_clienthello"),
    *("tls_start_client", "tls_established_client", "tls_failed_client", "requestheaders", "request"),
    *("responseheaders", "response", "error"),
)
"""Where another addon listens, all is mitmproxy's."""
_INDIFFERENT = {
    *("allow_hosts", "block_global", "cert_passphrase", "certs", "confdir", "connection_strategy", "flow_detail"),
    *("http2", "key_size", "listen_host", "listen_port", "mode", "scripts", "ssl_insecure", "tcp_timeout"),
    *("ssl_verify_upstream_trusted_ca", "ssl_verify_upstream_trusted_confdir", "termlog_verbosity", "upstream_cert"),
}
"""Options that change nothing about an answer, or that are looked at here. Any other is mitmproxy's to obey."""


def permitted(options: Options, is_heard: Callable[[str], bool]) -> bool:
    """Whether nobody else has to do with clients, and nobody is shown more of a flow than a line.

    `is_heard` tells of a hook whether an addon that is not known here has a function for it.
    """
    names = set(options.keys())
    others = {name for name in names - _INDIFFERENT if options.has_changed(name) and not name.startswith("hubcache_")}
    is_shown = "flow_detail" not in names or options.flow_detail > 1  # mitmdump alone shows no flows
    return not (is_shown or others or any(map(is_heard, HOOKS)))


class Front:
    """Receives clients at `desk`, or has mitmproxy do it."""

    def __init__(self, desk: DirectDependencies, options: Options) -> None:
        self._desk = desk
        self._blocks_global = options.block_global

    def receive(self, server: ServerInstance[Any], client: tuple[str, int]) -> asyncio.Protocol | None:
        """What speaks with a client at the door of `server`; None where mitmproxy shall do it."""
        mode = server.mode
        if self._blocks_global and _is_global(client[0]):
            return None  # mitmproxy turns it away, and says so
        if not self._desk.clients.admits(client[0]):
            return _TurnedAway()
        if isinstance(mode, ReverseMode):
            is_ours = mode.scheme == "https" and self._desk.interception.serves(mode)
        else:
            is_ours = isinstance(mode, RegularMode)
        return DirectConnection(self._desk, server, client) if is_ours and self._desk.connects.permitted else None


class _TurnedAway(asyncio.Protocol):
    """Closes a connection, unread."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


@lru_cache(1 << 12)
def _is_global(address: str) -> bool:
    return parse_address(address).is_global
