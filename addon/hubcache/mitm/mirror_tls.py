"""Logs advice about clients that speak TLS to a mirror's port, which is meant for plain HTTP.

mitmproxy answers them all the same, with a certificate for the registry: a client that does not verify it (`insecure`,
`skip_verify`) is served. For the others mitmproxy logs that they do not trust the certificate, but not what to change.
"""

import logging
import time
from collections.abc import Callable

from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.layers import ClientTLSLayer

from ..decide.throttle import Throttle
from .http1_server import chain

logger = logging.getLogger("hubcache")

_REPEAT_SECONDS = 600.0
_ADVICE = "speaks TLS to the mirror's plain port: use http:// or set insecure for this mirror"


class MirrorTlsAdvice:
    """Logs the advice, and limits how often it does so for each client's address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._throttle = Throttle(_REPEAT_SECONDS, clock)

    def watch(self, first: layer.Layer | None) -> None:
        """Log the advice in place of mitmproxy's line when TLS fails in `first` or a layer below."""
        for each in chain(first):
            if isinstance(each, ClientTLSLayer):
                # mitmproxy 12.3.1: on_handshake_error. Without it the log has mitmproxy's line alone.
                each.on_handshake_error = self._with_advice(each)  # type: ignore[method-assign, assignment]

    def _with_advice(self, tls: ClientTLSLayer) -> Callable[[str], layer.CommandGenerator[None]]:
        original = tls.on_handshake_error

        def on_handshake_error(error: str) -> layer.CommandGenerator[None]:
            peer = tls.context.client.peername
            client = peer[0] if peer else "a client"
            if self._throttle.permits(client):
                logger.warning("hubcache: %s %s (%s)", client, _ADVICE, error)
            for command in original(error):
                if not isinstance(command, commands.Log):
                    yield command

        return on_handshake_error
