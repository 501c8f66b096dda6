"""An engine and a worker of it, in the same process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hubcache.serve.messages import Answer, Listener
from hubcache.workers.epoch import Epoch
from hubcache.workers.owner_client import OwnerClient
from hubcache.workers.owner_server import OwnerServer

from support.engine import Cache, running
from support.standin import Hub, random_bytes
from support.users import until

REPO = "library/app"
DATA = random_bytes(3_000_000)


class EngineWithWorker:
    """An engine and a worker of it, in the same process."""

    def __init__(self, cache: Cache, remote: OwnerClient, workers: list[int], lost: asyncio.Event) -> None:
        self.cache = cache
        self.remote = remote
        self.workers = workers
        self.lost = lost

    async def get(self, path: str, method: str = "GET", listener: Listener = Listener.MIRROR, **headers: str) -> Answer:
        outcome = await self.remote.answer(self.cache.request(listener, method, path, **headers))
        assert isinstance(outcome, Answer)
        return outcome

    async def settled(self) -> None:
        await until(lambda: not self.cache.engine.fills._tasks)


def requests(pair: EngineWithWorker) -> float:
    """Return the number of requests that the owner has counted."""
    [family] = [one for one in pair.cache.engine.metrics.registry.collect() if one.name == "hubcache_requests"]
    return sum(sample.value for sample in family.samples)


@asynccontextmanager
async def connected_worker(cache: Cache) -> AsyncIterator[EngineWithWorker]:
    """Connect a worker to this engine."""
    workers: list[int] = []
    lost = asyncio.Event()
    owner = OwnerServer(cache.engine, workers.append)
    epoch = Epoch.create()
    cache.engine.on_change(epoch.advance)
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(owner.serve(*await asyncio.open_connection(sock=ours)))
    remote = await OwnerClient.connect(theirs, Epoch.attach(epoch.fileno()), lost.set)
    try:
        yield EngineWithWorker(cache, remote, workers, lost)
    finally:
        await remote.close()
        await serving
        assert owner.connected == 0
        cache.engine.on_change(lambda: None)
        epoch.close()


def engine_with_worker_fixture() -> Any:
    """Return a fixture for an engine with a worker."""

    @pytest.fixture
    async def pair(hub: Hub, tmp_path: Path) -> AsyncIterator[EngineWithWorker]:
        async with running(hub, tmp_path / "store") as cache, connected_worker(cache) as found:
            yield found

    return pair
