"""Two caches without a network between them, and the commands that export and import images."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hubcache.oci.digest import Digest

from support.cli import run
from support.engine import Cache, running
from support.standin import Hub, Image, random_bytes

LAYER = 300_000


async def command(cache: Cache, *arguments: str) -> Result:
    """Run a command of the command line for this cache."""
    result: Result = await asyncio.to_thread(run, *arguments, HUBCACHE_DIR=str(cache.settings.directory))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


async def succeeds(cache: Cache, *arguments: str) -> str:
    result = await command(cache, *arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def stored(cache: Cache) -> set[Digest]:
    return set(cache.engine.store.usage.sizes)


def export_fixtures() -> tuple[Any, Any]:
    """Return the fixtures `offline` and `image`, which is in the registry."""

    @pytest.fixture
    async def offline(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
        """Another cache, which never had a network."""
        async with running(hub, tmp_path / "other", offline=True, max_stale=float("inf"), tag_ttl=0.0) as started:
            yield started

    @pytest.fixture
    def image(hub: Hub) -> Image:
        return hub.image("library/app", "1", [random_bytes(LAYER, "a"), b"small"])

    return offline, image
