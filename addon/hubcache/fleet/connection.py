"""What a node has before it joins its fleet: the store of the bucket, a listener for its peers, and an identity."""

import os
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..oci.errors import ConfigError
from .bucket_store import BucketStore, open_bucket_stores
from .fleet_options import FleetOptions
from .membership import Node
from .own_address import own_host

_BACKLOG = 128
_MAX_NAME = 40


@dataclass(frozen=True, slots=True)
class FleetConnection:
    """An open listener for peers and the clients of the bucket, until `close`.

    There is a client for each endpoint of the bucket; the node uses the first.

    The id of `me` is the machine's name and a random part, since a node that starts again holds none of the leases that
    it held before.
    """

    options: FleetOptions
    stores: tuple[BucketStore, ...]
    listener: socket.socket
    me: Node

    @classmethod
    def open(cls, options: FleetOptions) -> Self:
        """Open the listener and prepare the bucket's client, without a request; blocks while a name is resolved.

        Raises `ConfigError` when the address cannot be used or when the bucket's settings are not complete.
        """
        stores = open_bucket_stores(options.bucket, os.environ, Path.home())
        listener = _listen(*options.listen)
        host, port = options.address or (own_host(options.listen[0], (stores[0].host, stores[0].port)), None)
        host = f"[{host}]" if ":" in host else host
        address = f"http://{host}:{port or listener.getsockname()[1]}"
        try:
            return cls(options, stores, listener, Node(_new_id(), address, options.version))
        except ValueError as error:
            listener.close()
            raise ConfigError(f"hubcache_peer_address: {error}") from error

    def close(self) -> None:
        """Close the listener."""
        self.listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; an empty host is all addresses, of IPv6 too where the machine has it."""
    try:
        if not host:
            is_dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if is_dual else socket.AF_INET
            return socket.create_server(("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"{host or '*'}:{port}"
        raise ConfigError(f"hubcache_peer_listen: cannot listen on {where}: {error.strerror or error}") from error


def _new_id() -> str:
    name = re.sub("[^A-Za-z0-9-]", "-", socket.gethostname().partition(".")[0]).strip("-")[:_MAX_NAME]
    return f"{name or 'node'}-{secrets.token_hex(4)}"
