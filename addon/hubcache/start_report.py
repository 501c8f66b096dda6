"""Logs at start where everything is, and what is wrong with the store."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mitmproxy.proxy.mode_specs import ReverseMode
from mitmproxy.utils import human

from .operate.ca import CERTIFICATE_FILE, describe
from .operate.options import Settings
from .operate.process_facts import ListenAddress
from .store.store import Store

logger = logging.getLogger("hubcache")

_SMALL = 1 << 30
"""Bytes: images of language runtimes and databases are often as large."""


def addresses(servers: Iterable[Any]) -> list[str]:
    """Return texts such as `mirror at *:5000`, one for each listener of mitmproxy."""
    return [
        f"{'mirror' if isinstance(server.mode, ReverseMode) else 'proxy'} at {human.format_address(address)}"
        for server in servers
        for address in server.listen_addrs[:1]
    ]


def listen_addresses(settings: Settings, servers: Iterable[Any]) -> tuple[ListenAddress, ...]:
    """Return the addresses of all listeners."""
    found = [
        ListenAddress("mirror" if isinstance(server.mode, ReverseMode) else "proxy", *address[:2])
        for server in servers
        for address in server.listen_addrs[:1]
    ]
    return tuple(found + ([ListenAddress("status", *settings.status)] if settings.status else []))


def log_addresses(settings: Settings, servers: Iterable[Any], confdir: str) -> None:
    """Log the addresses of all listeners, and the file that clients of the proxy must trust."""
    for address in addresses(servers):
        logger.info("hubcache: %s", address)
    directory = Path(confdir).expanduser()
    logger.info("hubcache: CA certificate %s %s", directory / CERTIFICATE_FILE, describe(directory))
    if settings.status is not None:
        logger.info("hubcache: status at http://%s", human.format_address(settings.status))


def log_store(store: Store) -> None:
    """Log how full the store is, or as a warning why nothing is stored, or why less than the user may expect."""
    size = human.pretty_size(store.capacity.max_bytes)
    if store.problem is not None:
        logger.warning("hubcache: not storing: %s", store.problem)
        return
    logger.info("hubcache: store %s, %s of %s used", store.directory, human.pretty_size(store.usage.used), size)
    if store.capacity.max_bytes < _SMALL:
        logger.warning("hubcache: hubcache_size is %s: many images are larger, and their blobs are not kept", size)
    disk = _disk_size(store.directory)
    if disk is not None and store.capacity.max_bytes > disk:
        logger.warning(
            "hubcache: hubcache_size is %s, but the file system of the store has %s: less is stored, because "
            "hubcache_min_free stays free",
            size,
            human.pretty_size(disk),
        )


def _disk_size(directory: Path) -> int | None:
    """Return the bytes of the file system; None when it cannot be read, or does not know its size."""
    try:
        state = os.statvfs(directory)
    except OSError:
        return None
    return state.f_blocks * state.f_frsize or None
