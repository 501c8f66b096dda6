"""Fixtures of the engine's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support import users
from support.engine import Cache, running
from support.standin import Hub


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten time-outs and pauses before retries, see `support.users.short_times`."""
    users.short_times(monkeypatch)


@pytest.fixture
async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    """A cache with the options of production."""
    async with running(hub, tmp_path / "store") as started:
        yield started
