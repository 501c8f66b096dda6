"""Clients that speak TLS to a mirror, whose port is meant for plain HTTP.

mitmproxy answers them all the same, with a certificate for the registry: a client that does not verify it (`insecure`,
`skip_verify`) is served. Of the others mitmproxy says that they do not trust the certificate, which helps nobody.
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


class MirrorTls:
    """Says what is wrong, of each client's address once in a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._throttle = Throttle(_REPEAT_SECONDS, clock)

    def watch(self, first: layer.Layer | None) -> None:
        """Speak in place of mitmproxy when TLS with a client of a mirror fails in `first` or a layer below."""
        for each in chain(first):
            if isinstance(each, ClientTLSLayer):
                each.on_handshake_error = self._in_other_words(each)  # type: ignore[method-assign, assignment]

    def _in_other_words(self, tls: ClientTLSLayer) -> Callable[[str], layer.CommandGenerator[None]]:
        fail = tls.on_handshake_error

        def on_handshake_error(error: str) -> layer.CommandGenerator[None]:
            peer = tls.context.client.peername
            client = peer[0] if peer else "a client"
            if self._throttle.permits(client):
                logger.warning("hubcache: %s %s (%s)", client, _ADVICE, error)
            for command in fail(error):
                if not isinstance(command, commands.Log):
                    yield command

        return on_handshake_error
