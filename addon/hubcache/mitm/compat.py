"""Finds out whether the installed mitmproxy and pyOpenSSL have the internals that this package uses.

Internals are names that a library does not document, and may change in any release. They were read in mitmproxy 12.3.1
and pyOpenSSL 26.4.0. With other versions than the tested ones, or where a name is missing, no module that uses them is
imported, and all clients are served through mitmproxy's documented hooks. The ranges are those of `pyproject.toml`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from inspect import get_annotations
from typing import Any

import OpenSSL
from mitmproxy import version

type Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VersionRange:
    """The versions of a library, from `first` to below `end`, with which this program was tested."""

    library: str
    first: Version
    end: Version

    def problem(self, installed: str) -> str | None:
        """Return what is wrong with an installed version, None where it is tested."""
        if self.first <= parse_version(installed) < self.end:
            return None
        return f"{self.library} {installed} is not tested with this version"


MITMPROXY = VersionRange("mitmproxy", (12, 2, 3), (13,))
PYOPENSSL = VersionRange("pyOpenSSL", (25, 2), (27,))

NAMES = {
    "mitmproxy.addonmanager": ("AddonManager.chain", "AddonManager.lookup", "traverse"),
    "mitmproxy.addons.next_layer": ("NextLayer.next_layer",),
    "mitmproxy.addons.proxyserver": ("Proxyserver.connections",),
    "mitmproxy.addons.tlsconfig": ("TlsConfig.get_cert", "TlsConfig.certstore"),
    "mitmproxy.certs": ("CertStore.certs", "CertStoreEntry.chain_certs", "CertStoreEntry.chain_file"),
    "mitmproxy.connection": ("Client.cipher_list", "Server.address"),
    "mitmproxy.net.http.http1": ("assemble_response",),
    "mitmproxy.net.tls": ("log_master_secret", "starts_like_tls_record"),
    "mitmproxy.proxy.layer": ("Layer.handle_event", "NextLayer.data_client"),
    "mitmproxy.proxy.layers": ("ClientTLSLayer.client_hello_parsed", "HttpLayer.connections", "HttpLayer.streams"),
    "mitmproxy.proxy.layers.tls": ("HTTP1_ALPNS", "ClientTLSLayer.on_handshake_error"),
    "mitmproxy.proxy.layers.http": ("HTTPMode.transparent",),
    "mitmproxy.proxy.layers.http._base": ("ReceiveHttp",),
    "mitmproxy.proxy.layers.http._events": ("RequestData", "RequestEndOfMessage", "ResponseHeaders"),
    "mitmproxy.proxy.layers.http._http1": (
        *("Http1Server.buf", "Http1Server.done", "Http1Server.mark_done", "Http1Server.read_body"),
        *("Http1Server.read_headers", "Http1Server.request", "Http1Server.send", "Http1Server.stream_id"),
    ),
    "mitmproxy.proxy.layers.http._upstream_proxy": ("HttpUpstreamProxy.make",),
    "mitmproxy.proxy.mode_servers": (
        *("AsyncioServerInstance._servers", "AsyncioServerInstance.listen", "ServerInstance.handle_stream"),
    ),
    "mitmproxy.proxy.mode_specs": ("ProxyMode.full_spec", "ReverseMode.scheme"),
    "mitmproxy.proxy.server": (
        *("ConnectionHandler.timeout_watchdog", "ConnectionHandler.transports", "ConnectionIO.handler"),
        *("ConnectionIO.writer", "TimeoutWatchdog.last_activity"),
    ),
    "mitmproxy.proxy.tunnel": ("TunnelLayer.event_to_child", "TunnelLayer.tunnel_state", "TunnelState.OPEN"),
    "mitmproxy.utils.emoji": ("emoji",),
    "OpenSSL._util": (
        *("ffi.buffer", "ffi.from_buffer", "no_zero_allocator", "lib.BIO_new", "lib.BIO_read", "lib.BIO_s_mem"),
        *("lib.ERR_clear_error", "lib.SSL_CTX_clear_mode", "lib.SSL_MODE_ENABLE_PARTIAL_WRITE", "lib.SSL_set_bio"),
        *("lib.SSL_set_fd", "lib.SSL_write"),
    ),
    "OpenSSL.SSL": (
        *("Connection._from_ssl", "Connection._into_ssl", "Connection._raise_ssl_error", "Connection._ssl"),
        "Context._context",
    ),
}
"""The internals that are used, by module. Each use has a comment that says what breaks without the name."""


def parse_version(text: str) -> Version:
    """Return the leading numbers of a version: (13, 0) for "13.0.dev (+5, commit abc)"."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def find_problem() -> str | None:
    """Return why internals must not be used, as a sentence for the log; None where all is as tested."""
    return (
        MITMPROXY.problem(version.VERSION)
        or PYOPENSSL.problem(OpenSSL.__version__)
        or next((f"{module} has no {name} in this version" for module, name in missing_names(NAMES.items())), None)
    )


def missing_names(names: Iterable[tuple[str, Iterable[str]]]) -> Iterable[tuple[str, str]]:
    """Yield the names, with their modules, that do not exist."""
    for module, dotted_names in names:
        for dotted in dotted_names:
            if not _exists(module, dotted):
                yield module, dotted


def _exists(module: str, dotted: str) -> bool:
    try:
        found: Any = import_module(module)
    except ImportError:
        return False
    for name in dotted.split("."):
        if not _has(found, name):
            return False
        found = getattr(found, name, None)
    return True


def _has(owner: Any, name: str) -> bool:
    """Whether an object has an attribute, or is a class whose instances have it (annotated, or set in a method)."""
    if hasattr(owner, name):
        return True
    classes = owner.__mro__ if isinstance(owner, type) else ()
    return any(
        any(name in function.__code__.co_names for function in vars(each).values() if hasattr(function, "__code__"))
        or name in get_annotations(each)
        for each in classes
    )
