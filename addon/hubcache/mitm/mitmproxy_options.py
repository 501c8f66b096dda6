"""mitmproxy's own options: their defaults for this program, and what the program derives from them."""

import ssl

import certifi
from mitmproxy import ctx
from mitmproxy.proxy.mode_specs import ProxyMode


def is_default(name: str) -> bool:
    """Whether an option has mitmproxy's default: whether the user set it to this value is unknown."""
    return bool(getattr(ctx.options, name) == ctx.options.default(name))


def set_defaults(**values: object) -> None:
    """Set options that the user did not set."""
    unset = {name: value for name, value in values.items() if is_default(name)}
    if unset:
        ctx.options.update(**unset)


def listening_ports() -> list[int]:
    """Return the ports of all modes that listen on one."""
    ports = [ProxyMode.parse(mode).listen_port(ctx.options.listen_port) for mode in ctx.options.mode]
    return [port for port in ports if port]


def upstream_tls_context() -> ssl.SSLContext:
    """Return the TLS context for the cache's own connections, which follows mitmproxy's options for its connections."""
    context = ssl.create_default_context(
        cafile=ctx.options.ssl_verify_upstream_trusted_ca or certifi.where(),
        capath=ctx.options.ssl_verify_upstream_trusted_confdir,
    )
    if ctx.options.ssl_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
