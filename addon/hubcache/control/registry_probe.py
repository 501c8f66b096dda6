"""Asks one registry as a pull does, and reports how long each step takes, for a diagnosis."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from yarl import URL

from ..oci.errors import HubcacheError
from ..oci.image_name import ImageName
from ..oci.media import COMMON_TYPES
from ..oci.registry_pattern import registry_named
from ..transfer.upstream import Upstream
from ..transfer.upstreams import Upstreams
from .errors import InvalidCommand
from .registries import upstream_of

SECONDS = 15.0
"""Longest duration of all steps together."""

_HUB_IMAGES = (("ratelimitpreview/test", "latest"), ("library/hello-world", "latest"))
"""Images whose manifest is requested with a HEAD, which does not count as a pull. Docker documents the first one for
this (docs.docker.com, "Usage and rate limits"); a mirror as upstream may not have it."""

_LIMITS = {
    "ratelimit-limit": "limit",
    "ratelimit-remaining": "remaining",
    "docker-ratelimit-source": "source",
    "retry-after": "retry_after",
}
"""Headers of the Hub's rate limit, and their names in the report; `100;w=21600` means 100 pulls in 21,600 seconds."""

type Step = dict[str, Any]


class RegistryProbe:
    """Probes registries: `/v2/`, and of Docker Hub also a token and the head of a manifest, with the rate limit."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams

    async def run(self, host: str) -> dict[str, Any]:
        """Return the steps with status, seconds and error, within `SECONDS`.

        Raises `InvalidCommand` for what is no host, and `NotServed` for a registry that is not cached.
        """
        named = registry_named(host)
        if named is None:
            raise InvalidCommand(f"{host[:200]!r} is not the host of a registry")
        with upstream_of(self._upstreams, ImageName(named.host, "", "")) as upstream:
            return await _Probe(upstream).run()


class _Probe:
    """One probe."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._origin = URL(upstream.registry.upstream)
        self._steps: list[Step] = []
        self._limit: dict[str, str] | None = None
        self._date: str | None = None

    async def run(self) -> dict[str, Any]:
        """Do the steps until one fails; see `RegistryProbe.run`."""
        begun, origin = time.monotonic(), self._origin
        try:
            async with asyncio.timeout(SECONDS):
                await self._run()
        except TimeoutError:
            self._steps[-1]["error"] = f"no answer within {SECONDS:g} seconds for all steps"
        except HubcacheError as error:
            self._steps[-1]["error"] = str(error)
        proxy = self._upstream.client.proxies.find(origin.scheme, origin.host or "", origin.port)
        return {
            "registry": self._upstream.registry.host,
            "upstream": self._upstream.registry.upstream,
            "proxy": None if proxy is None else str(proxy),
            "ok": all(step["error"] is None for step in self._steps),
            "steps": self._steps,
            "ratelimit": self._limit,
            "date": self._date,
            "seconds": round(time.monotonic() - begun, 4),
        }

    async def _run(self) -> None:
        ping = await self._request("ping", "GET", "/v2/", {})
        if ping["status"] not in (200, 401):  # distribution spec, "Determining Support"
            ping["error"] = f"the registry answers {ping['status']}"
        elif self._upstream.registry.is_hub:
            await self._read_manifest()
            if self._upstream.account is not None and not self._steps[-1]["error"]:
                await self._token("account token", _HUB_IMAGES[0][0], self._upstream.account_authorization)

    async def _read_manifest(self) -> None:
        step: Step = {}
        for repository, tag in _HUB_IMAGES:
            token = await self._token("token", repository, self._upstream.anonymous_authorization)
            headers = {"Accept": ", ".join(COMMON_TYPES)} | ({"Authorization": token} if token else {})
            step = await self._request("manifest", "HEAD", f"/v2/{repository}/manifests/{tag}", headers)
            if step["status"] not in (401, 403, 404):
                break
        if step["status"] != 200:
            step["error"] = f"the registry answers {step['status']}"

    async def _token(self, name: str, repository: str, get: Callable[[str], Awaitable[str | None]]) -> str | None:
        """Get a token; one that was issued a short time ago is used again, which takes no time."""
        with self._step(name, repository):
            return await get(repository)

    async def _request(self, name: str, method: str, path: str, headers: dict[str, str]) -> Step:
        """Send a request, without following redirects, and record its status and the rate limit."""
        url = URL(f"{self._upstream.registry.upstream}{path}")
        with self._step(name, str(url)) as step:
            async with self._upstream.client.send("probe", method, url, headers, named_by=self._origin) as response:
                step["status"] = response.status
                limit = {
                    name: response.headers[header] for header, name in _LIMITS.items() if header in response.headers
                }
                self._limit = limit or self._limit
                self._date = response.headers.get("Date")
        return step

    @contextmanager
    def _step(self, name: str, target: str) -> Iterator[Step]:
        begun = time.monotonic()
        step: Step = {"step": name, "target": target, "status": None, "error": None}
        self._steps.append(step)
        try:
            yield step
        finally:
            step["seconds"] = round(time.monotonic() - begun, 4)
