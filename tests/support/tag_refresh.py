"""A cache whose clock the test sets, and popular tags in it."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hubcache.decide.watched_tag import OFTEN
from hubcache.serve.messages import Answer, Listener

from support.engine import Cache, running
from support.standin import Hub, Image
from support.users import pull, settled, until

TTL = 60.0
"""As users have it."""

OFTEN_ENOUGH = math.ceil(OFTEN) + 2


@asynccontextmanager
async def running_with_manual_ticks(hub: Hub, directory: Path) -> AsyncIterator[Cache]:
    """Run a cache whose tags are validated by `tick`."""
    async with running(hub, directory, sync=True, tag_ttl=TTL) as started:
        await started.engine._housekeeping.close()
        yield started


async def tick(cache: Cache) -> None:
    """Validate the tags that are due, and wait until the validations, prefetches and fills have ended."""
    cache.engine._tag_refresh.tick()
    await idle(cache)


async def idle(cache: Cache) -> None:
    await until(lambda: not cache.engine._tag_refresh._tasks)
    await settled(cache)


async def popular(cache: Cache, image: Image, listener: Listener = Listener.PROXY) -> None:
    """Pull an image and request its tag often."""
    assert set(await pull(cache, image, listener)) == {200}
    for _ in range(OFTEN_ENOUGH):
        assert (await cache.get(listener, f"/v2/{image.repo}/manifests/{image.tag}"))[0] == 200


async def ask_tag(cache: Cache, image: Image, listener: Listener = Listener.PROXY) -> tuple[Answer, bytes]:
    answer, body = await cache.ask(listener, "GET", f"/v2/{image.repo}/manifests/{image.tag}")
    assert isinstance(answer, Answer)
    return answer, body
