"""mitmproxy's hooks about connections that need no internals of mitmproxy.

They serve all clients where an untested mitmproxy or pyOpenSSL is installed; `connection_hooks` adds the rest.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mitmproxy import http, tls
from mitmproxy.connection import Client
from mitmproxy.proxy.mode_specs import ReverseMode

from .clients.draining import Draining
from .mitm.interception import Interception
from .oci.errors import ConfigError
from .serve.messages import Forward


class RunningFlows:
    """The flows that are being answered, for which an orderly stop waits.

    Connections stay open: mitmproxy has no public function that closes them.
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self.is_draining = False
        self.has_new = False

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        """Count a flow."""
        self._ids.add(flow.id)

    def response(self, flow: http.HTTPFlow) -> None:
        """Stop counting a flow: its answer is sent."""
        self._ids.discard(flow.id)

    def error(self, flow: http.HTTPFlow) -> None:
        """Stop counting a flow: it failed."""
        self._ids.discard(flow.id)

    def close_idle(self) -> int:
        """Begin draining, and return the number of flows that are being answered."""
        self.is_draining = True
        return len(self._ids)

    def abort(self) -> None:
        """Do nothing: mitmproxy closes the connections when it ends."""


class PublicConnectionHooks:
    """The hooks that need no internals."""

    def __init__(self) -> None:
        self._flows = RunningFlows()
        self.clients: Draining = self._flows
        """The connections that are drained during a stop."""
        self.addons: list[object] = [self._flows]

    @property
    def is_draining(self) -> bool:
        """Whether the stop has begun."""
        return self._flows.is_draining

    def intercept(self, _interception: Interception) -> None:
        """Use these registries from now on."""

    def use_mirror_certificate(self, path: Path | None) -> None:
        """Raise `ConfigError` for a certificate: TLS at mirrors needs internals."""
        if path is not None:
            raise ConfigError(
                "hubcache_mirror_certificate: not possible with these versions of mitmproxy and pyOpenSSL"
            )

    def serve(self, _servers: Iterable[Any], _responder: Any) -> None:
        """Serve clients of these servers; mitmproxy does already."""

    def take_decision(self, _client: Client) -> Forward | None:
        """Return and remove the decision about a client's next request that was made before mitmproxy took over."""
        return None

    def renew_certificates(self) -> None:
        """Have leaf certificates made anew, where that is possible."""

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        """Announce the end of the connection in answers that begin during a stop."""
        if self.is_draining and flow.response is not None and not flow.request.is_http2:
            flow.response.headers["Connection"] = "close"

    def tls_clienthello(self, data: tls.ClientHelloData) -> None:
        """Have the certificate made for the address of the CONNECT alone where the client sends no server name: a
        registry that is an IP address has none. mitmproxy would add the proxy's own address, which the CA's name
        constraints do not permit. A mirror's client sends the mirror's name, which mitmproxy would send to the
        registry."""
        client, address = data.context.client, data.context.server.address
        if address is not None and (client.sni is None or isinstance(client.proxy_mode, ReverseMode)):
            client.sni = address[0]
