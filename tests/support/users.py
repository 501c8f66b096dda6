"""Users, their tokens and a clock, for tests of the engine."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.serve import access
from hubcache.serve.messages import Answer, Listener
from hubcache.transfer import breaker, upstream, upstream_client

from support.engine import Cache
from support.standin import Hub, Image
from support.time_outs import short_time_outs

SECRET = "alice/secret"
REFUSED = {Listener.PROXY: 401, Listener.MIRROR: 404}
EACH_LISTENER = pytest.mark.parametrize("listener", list(Listener), ids=lambda listener: listener.value)


def basic(user: str, password: str) -> str:
    """Return the `Authorization` of a client for the token service after `docker login`."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def bearer(hub: Hub, user: str, repo: str) -> str:
    """Return the `Authorization` of a logged-in client, with a new token of the real service for the user's access."""
    granted = hub.accounts.granted(user, repo, exists=True)
    return "Bearer " + hub.accounts.issue(user, {repo: granted} if granted else {}).value


class Clock(SimpleNamespace):
    """The cache's clock, `ahead` seconds before the real one. Timers of the event loop are not changed."""

    def __init__(self, patch: pytest.MonkeyPatch, cache: Cache) -> None:
        super().__init__()
        self._ahead = 0.0
        patch.setattr(access, "time", self)
        engine: Any = cache.engine
        self._index = engine.store.index
        for part in (engine._clients._tokens, *engine._upstreams.values()):
            patch.setattr(part, "_clock", self.monotonic)
        for part in engine._upstreams.values():
            patch.setattr(part, "_wall_clock", self.time)
        for part in (
            *(engine._access, engine._manifests, engine._validation, engine._referrers, engine._tag_refresh),
            engine._blobs._blob_access,
        ):
            patch.setattr(part, "_clock", self.time)

    @property
    def ahead(self) -> float:
        return self._ahead

    @ahead.setter
    def ahead(self, seconds: float) -> None:
        self._ahead = seconds
        self._index.on_change()  # answers are repeated for a second only

    def time(self) -> float:
        return time.time() + self._ahead

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead


def short_times(patch: pytest.MonkeyPatch) -> None:
    """Shorten time-outs and pauses before retries: with those of production, tests of them would last minutes."""
    short_time_outs(patch)
    patch.setattr(upstream_client, "_PROBE_SECONDS", 1.0)
    patch.setattr(breaker, "_FIRST_PROBE_SECONDS", 0.1)
    patch.setattr(upstream, "_BACKOFF_SECONDS", 0.01)
    patch.setattr(upstream, "_RETRY_WITHIN_SECONDS", 0.9)  # less than a time-out, as in production


async def pull(cache: Cache, image: Image, listener: Listener = Listener.PROXY, **headers: str) -> list[int]:
    """Request tag, manifest, config and layers as docker does; return the status of each answer."""
    found = []
    for method, path in requests_of(image):
        answer, _ = await cache.ask(listener, method, path, **headers)
        assert isinstance(answer, Answer)
        found.append(answer.status)
    await settled(cache)
    return found


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for a condition that another task fulfils; raises `TimeoutError` after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


async def settled(cache: Cache) -> None:
    """Wait until fetched content is stored; its last byte is sent a little earlier."""
    await until(lambda: not cache.engine.fills._tasks)


def requests_of(image: Image) -> list[tuple[str, str]]:
    """Return method and path of all possible requests for an image."""
    paths = [f"manifests/{image.digest}", *(f"blobs/{blob}" for blob in (image.config, *image.layers))]
    if image.tag is not None:
        paths.insert(0, f"manifests/{image.tag}")
    return [(method, f"/v2/{image.repo}/{path}") for path in paths for method in ("HEAD", "GET")]


async def assert_refused(cache: Cache, image: Image, listener: Listener, **headers: str) -> None:
    """Assert that no part of the image is served, and that a GET is refused with an error of the distribution spec."""
    for method, path in requests_of(image):
        answer, body = await cache.ask(listener, method, path, **headers)
        assert isinstance(answer, Answer)
        assert answer.status == REFUSED[listener], (method, path)
        assert method == "HEAD" or json.loads(body)["errors"][0]["code"] in ("UNAUTHORIZED", "MANIFEST_UNKNOWN")


def turn_private(hub: Hub, repo: str, **users: str) -> None:
    """Make a public repository private to alice (and `users`), and revoke earlier anonymous tokens."""
    hub.private(repo, {"alice": "alice's", **users})
    for value, token in list(hub.accounts.tokens.items()):
        if not token.user:
            del hub.accounts.tokens[value]
