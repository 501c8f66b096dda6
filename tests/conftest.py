"""Fixtures of all tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support import mitm  # noqa: F401 - first, since it imports what warns
from support.engine import Cache, running
from support.standin import Hub, Image, random_bytes
from support.users import SECRET, bearer, pull

settings.register_profile("suite", deadline=None, max_examples=60)  # no deadline: the machine may be busy
settings.load_profile("suite")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty Docker Hub on loopback; the test fails when a client did what none may do."""
    with Hub() as running:
        yield running
        assert running.violations == []


@pytest.fixture
def secret(hub: Hub) -> Image:
    """A private image of alice; bob exists and may not see it."""
    hub.user("bob", "bob's")
    image = hub.image(SECRET, "1", [random_bytes(100_000, "secret")])
    hub.private(SECRET, {"alice": "alice's"})
    return image


@pytest.fixture
async def keeper(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    """`hubcache_private=authorize`."""
    async with running(hub, tmp_path / "keeper", authorize=True) as started:
        yield started


@pytest.fixture
async def keeping(keeper: Cache, hub: Hub, secret: Image) -> Cache:
    """`hubcache_private=authorize`, with the private image in the store."""
    assert set(await pull(keeper, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
    assert len(keeper.engine.store.ledger.sizes) == 3
    hub.reset_log()
    return keeper
