"""The engine in front of the stand-in Hub, without mitmproxy."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubcache.engine import Engine
from hubcache.oci.media import COMMON_TYPES
from hubcache.oci.registry import Registry
from hubcache.operate.options import Settings
from hubcache.serve.messages import Answer, Forward, Listener, Request
from hubcache.setup.setup_pages import SetupPages

from support.standin import Hub

ACCEPT = ", ".join(COMMON_TYPES)

SETUP = SetupPages(Path(__file__), 5000, 8080)
"""The set-up pages; this file stands in for the CA certificate."""


def settings(hub: Hub, directory: Path, **changes: Any) -> Settings:
    """Return the settings of tests, with changes."""
    plain = Settings(
        directory=directory,
        size=1 << 30,
        admit_after=2,
        half_life=7 * 86400.0,
        expire_after=30 * 86400.0,
        max_blob=0,
        min_free=0,
        pins=(),
        registries=(Registry.parse(f"registry-1.docker.io={hub.url()}"),),
        tag_ttl=600.0,
        max_stale=86400.0,
        offline=False,
        negative_ttl=30.0,
        authorize=False,
        account=None,
        ratelimit_reserve=10,
        sync=False,
        sync_rate=1.0,
        while_revalidate=0.0,
        scrub=None,
        tunnel=("*",),
        clients=(),
        offer_only=False,
        access_log=None,
        status=None,
        workers=1,
        stop_within=1.0,
    )
    return replace(plain, **changes)


@dataclass
class Cache:
    """A running engine, and requests to it."""

    engine: Engine
    settings: Settings

    def apply(self, **changes: Any) -> None:
        """Change settings while the engine runs."""
        self.settings = replace(self.settings, **changes)
        self.engine.apply(self.settings)

    def request(self, listener: Listener, method: str, path: str, **headers: str) -> Request:
        """Return a request as the plugin makes it; header names have underscores."""
        all_headers = {"accept": ACCEPT} | {name.replace("_", "-"): value for name, value in headers.items()}
        path, _, query = path.partition("?")
        return Request(method, path, self.settings.registries[0], listener, all_headers, query)

    async def ask(self, listener: Listener, method: str, path: str, **headers: str) -> tuple[Answer | Forward, bytes]:
        """Return the answer and its complete body."""
        outcome = await self.engine.answer(self.request(listener, method, path, **headers))
        assert outcome is not None
        return outcome, await read(outcome)

    async def get(self, listener: Listener, path: str, **headers: str) -> tuple[int, bytes]:
        """Return status and body of a GET that the cache answers."""
        outcome, body = await self.ask(listener, "GET", path, **headers)
        assert isinstance(outcome, Answer)
        return outcome.status, body


async def read(outcome: Answer | Forward) -> bytes:
    """Return the complete body; raises the error that cuts it short."""
    if isinstance(outcome, Forward):
        return b""
    if outcome.source is None:
        return outcome.body
    parts = []
    try:
        while not outcome.source.finished:
            parts.append(await outcome.source.read())
    finally:
        await outcome.source.close()
    return b"".join(parts)


@asynccontextmanager
async def running(hub: Hub, directory: Path, **changes: Any) -> AsyncIterator[Cache]:
    """Run a cache with its store in `directory`."""
    chosen = settings(hub, directory, **changes)
    engine = await Engine.start(chosen, ssl.create_default_context(), SETUP)
    try:
        yield Cache(engine, chosen)
    finally:
        await engine.close()
