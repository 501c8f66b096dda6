"""Whether mitmproxy logs TLS keys, for tools that decrypt recorded traffic."""

from mitmproxy.net import tls


def is_enabled() -> bool:
    """Whether mitmproxy logs keys; it does so only for TLS connections that it makes itself."""
    # mitmproxy 12.3.1: log_master_secret, set by SSLKEYLOGFILE. Without it keys of direct connections are missing.
    return tls.log_master_secret is not None
