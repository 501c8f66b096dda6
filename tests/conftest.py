"""Fixtures that all kinds of tests share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support import mitm  # noqa: F401 - first, because it ignores the warnings of what it imports
from support.engine import Cache, running
from support.standin import Hub, Image, random_bytes
from support.users import SECRET, bearer, pull

settings.register_profile("suite", deadline=None, max_examples=60)  # no deadline: the machine may be busy
settings.load_profile("suite")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty Docker Hub on loopback; the test fails if a client did what no client may do."""
    with Hub() as running:
        yield running
        assert running.violations == []


@pytest.fixture
def secret(hub: Hub) -> Image:
    """A private image that alice may pull and bob may not."""
    hub.user("bob", "bob's")
    image = hub.image(SECRET, "1", [random_bytes(100_000, "secret")])
    hub.private(SECRET, {"alice": "alice's"})
    return image


@pytest.fixture
async def authorizing_cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    """A cache with `hubcache_private=authorize`."""
    async with running(hub, tmp_path / "authorizing", authorize=True) as started:
        yield started


@pytest.fixture
async def cache_with_secret(authorizing_cache: Cache, hub: Hub, secret: Image) -> Cache:
    """A cache with `hubcache_private=authorize` that has stored the private image for alice."""
    assert set(await pull(authorizing_cache, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
    assert len(authorizing_cache.engine.store.usage.sizes) == 3
    hub.reset_log()
    return authorizing_cache
