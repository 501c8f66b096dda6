"""A signed image with an SBOM, and requests for its referrers."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hubcache.serve.messages import Answer, Listener

from support.engine import Cache, running
from support.standin import Hub, Image
from support.users import pull

REPO, TTL, MAX_STALE = "library/app", 600.0, 10_000.0
SBOM, SIGNATURE = "text/spdx+json", "application/vnd.dev.cosign.simplesigning.v1+json"


async def ask(
    cache: Cache,
    image: Image,
    listener: Listener = Listener.PROXY,
    query: str = "",
    method: str = "GET",
    **headers: str,
) -> Answer:
    path = f"/v2/{image.repo}/referrers/{image.digest}" + (f"?{query}" if query else "")
    answer, _ = await cache.ask(listener, method, path, **headers)
    assert isinstance(answer, Answer)
    return answer


def types(answer: Answer) -> list[str]:
    assert answer.status == 200
    return sorted(found["artifactType"] for found in json.loads(answer.body)["manifests"])


def referrer_fixtures() -> tuple[Any, Any]:
    """Return the fixtures `cache` and `image`, for a registry that has the referrers API."""

    @pytest.fixture
    async def cache(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
        hub.referrers = True
        async with running(hub, tmp_path / "store", tag_ttl=TTL, max_stale=MAX_STALE) as started:
            yield started

    @pytest.fixture
    async def image(hub: Hub, cache: Cache) -> Image:
        """A signed image with an SBOM, pulled, so that its digest is known to belong to the repository."""
        image = hub.image(REPO, "1")
        hub.image(REPO, None, [b"sbom"], subject=image, artifact_type=SBOM)
        hub.image(REPO, None, [b"signature"], subject=image, artifact_type=SIGNATURE)
        assert set(await pull(cache, image)) == {200}
        hub.reset_log()
        return image

    return cache, image
