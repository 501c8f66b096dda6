"""Engines that share a bucket in memory."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hubcache.fleet import connection
from hubcache.fleet.bucket_store import BucketStore

from support.engine import Cache, running
from support.standin import Hub

BUCKET = "s3://caches/test"


def use_store(monkeypatch: pytest.MonkeyPatch, store: Any) -> None:
    """Have nodes that start from now on use this object store, whatever bucket their options name."""
    opened = (BucketStore("127.0.0.1", 9, store, store),)
    monkeypatch.setattr(connection, "open_bucket_stores", lambda *_: opened)


@asynccontextmanager
async def nodes(hub: Hub, directory: Path, count: int, **changes: Any) -> AsyncIterator[list[Cache]]:
    """Run caches that are nodes of one fleet, each with a store of its own below `directory`."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(node(hub, directory / str(number), **changes)) for number in range(count)
        ]


def node(hub: Hub, directory: Path, **changes: Any) -> Any:
    """Run a cache that is a node of the fleet."""
    changes = {"bucket": BUCKET, "peer_listen": ("127.0.0.1", 0)} | changes
    return running(hub, directory, **changes)
