"""Finds the outbound proxies: that of mitmproxy's mode `upstream:`, else those of the environment."""

from collections.abc import Iterable, Mapping

from mitmproxy.options import Options
from mitmproxy.proxy.mode_specs import ProxyMode, ReverseMode, UpstreamMode

from ..clients.destinations import is_own_listener
from ..decide.outbound_proxy import OutboundProxies, OutboundProxy, basic_authorization
from ..oci.errors import ConfigError


def find_outbound_proxies(
    options: Options, environment: Mapping[str, str], own_ports: Iterable[int]
) -> OutboundProxies:
    """Return the outbound proxies.

    Raises `ConfigError` for an invalid variable, for a proxy that is this program itself (which listens on
    `own_ports`), and for the option `upstream_auth` beside a mirror listener: mitmproxy would send its credentials to
    registries.
    """
    proxies = _outbound_proxies(options, environment)
    for proxy in proxies:
        if is_own_listener(proxy.address, own_ports):
            raise ConfigError(f"outbound proxy {proxy} is this cache itself; unset HTTPS_PROXY and HTTP_PROXY for it")
    return proxies


def _outbound_proxies(options: Options, environment: Mapping[str, str]) -> OutboundProxies:
    modes = list(map(ProxyMode.parse, options.mode))
    credentials = options.upstream_auth
    if credentials and any(isinstance(mode, ReverseMode) for mode in modes):
        raise ConfigError("upstream_auth: the mirror would send it to registries; use the environment's HTTPS_PROXY")
    for mode in modes:
        if isinstance(mode, UpstreamMode):
            authorization = basic_authorization(credentials) if credentials else None
            return OutboundProxies.all_through(OutboundProxy(mode.scheme, *mode.address, authorization))
    return OutboundProxies.from_environment(environment)
