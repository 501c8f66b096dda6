"""The HTTP clients of all registries: one for those that are configured, and one for those that clients named."""

import logging
import ssl

from ..decide.outbound_proxy import OutboundProxies
from ..oci.registry import Registry
from .breaker import CircuitBreakers
from .observer import Observer
from .session import open_download_session, open_session
from .tokens import Tokens
from .upstream_client import UpstreamClient

logger = logging.getLogger("hubcache")


class UpstreamClients:
    """HTTP clients with their sessions and tokens, until `close`. The client for registries that clients named connects
    to no local address, not even at their own host."""

    def __init__(self, tls: ssl.SSLContext, user_agent: str, observer: Observer, breakers: CircuitBreakers) -> None:
        self._http = open_session(tls, user_agent)
        self._guarded = open_session(tls, user_agent, guarded=True)
        self._named = open_session(tls, user_agent, guarded=True, named_by_clients=True)
        self._downloads = open_download_session(tls, user_agent)
        self._client = UpstreamClient(self._http, observer, breakers, self._guarded, self._downloads)
        self._guarded_client = UpstreamClient(
            self._http, observer, breakers, self._named, self._downloads, guards_registries=True
        )
        self._tokens, self._guarded_tokens = Tokens(self._client), Tokens(self._guarded_client)

    def of(self, registry: Registry) -> tuple[UpstreamClient, Tokens]:
        """Return the client and the tokens for a registry."""
        if registry.is_named_by_client:
            return self._guarded_client, self._guarded_tokens
        return self._client, self._tokens

    def use_proxies(self, proxies: OutboundProxies) -> None:
        """Send requests through these outbound proxies from now on."""
        if proxies and str(proxies) != str(self._client.proxies):
            logger.info("hubcache: registries are reached through the outbound proxy %s", proxies)
        self._client.proxies = self._guarded_client.proxies = proxies

    def set_offline(self, is_offline: bool) -> None:
        """Set whether no requests are sent."""
        self._client.offline = self._guarded_client.offline = is_offline

    async def close(self) -> None:
        """Close all connections."""
        await self._guarded.close()
        await self._named.close()
        await self._http.close()
        self._downloads.close()
