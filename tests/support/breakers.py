"""A cache whose upstream fails, with circuit breakers that are probed after short times."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.serve.messages import Listener
from hubcache.transfer import breaker

from support.engine import Cache, running
from support.ports import free_port
from support.standin import Hub, Image, random_bytes
from support.upstreams import record_requests
from support.users import pull, until


def address(hub: Hub, listener: str) -> str:
    return hub.url(listener).removeprefix("http://")


async def until_closed(cache: Cache, host: str) -> None:
    await until(lambda: cache.engine.breakers.open_reason(host) is None)


async def until_open(cache: Cache, host: str) -> None:
    await until(lambda: cache.engine.breakers.open_reason(host) is not None)


async def until_probed(cache: Cache, host: str) -> None:
    """Wait until the circuit is open and its first probe has failed."""
    await until_open(cache, host)
    await cache.engine.breakers.circuits[host].probed.wait()


async def fail(cache: Cache, listener: Listener, count: int) -> None:
    """Request manifests that are not stored, a different one each time."""
    for number in range(count):
        status, _ = await cache.get(listener, f"/v2/library/none/manifests/{number}")
        assert status == 503


def put_blobs(hub: Hub, count: int) -> list[tuple[str, bytes]]:
    """Return paths of blobs that were never requested, and their content."""
    contents = [random_bytes(2000, f"cold {number}") for number in range(count)]
    return [(f"/v2/library/cold/blobs/{hub.blob('library/cold', content)}", content) for content in contents]


async def never() -> bool:
    return False


def breaker_fixtures() -> tuple[Any, Any, Any, Any]:
    """Return the fixtures `_short_times`, for all tests of a module, `image`, `cache` and `sent`, hosts of requests."""

    @pytest.fixture(autouse=True)
    def _short_times(monkeypatch: pytest.MonkeyPatch, short_times: None) -> None:
        monkeypatch.setattr(breaker, "_FIRST_PROBE_SECONDS", 0.1)
        monkeypatch.setattr(breaker, "_LAST_PROBE_SECONDS", 0.2)

    @pytest.fixture
    def image(hub: Hub) -> Image:
        return hub.image("library/app", "1")

    @pytest.fixture
    async def cache(hub: Hub, image: Image, tmp_path: Path) -> AsyncIterator[Cache]:
        """A cache with a status listener, and the image in its store."""
        async with running(hub, tmp_path / "store", status=("127.0.0.1", free_port())) as started:
            assert set(await pull(started, image)) == {200}
            hub.reset_log()
            yield started

    @pytest.fixture
    def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
        return record_requests(monkeypatch)

    return _short_times, image, cache, sent
