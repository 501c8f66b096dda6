"""Links are stored by repository, and a later link does not remove known properties."""

from pathlib import Path

from hubcache.decide.records import Link
from hubcache.oci.digest import Digest
from support.stores import opened_store

HUB = "registry-1.docker.io"


async def test_link_belongs_to_one_repository(tmp_path: Path) -> None:
    digest, other = Digest.of(b"layer"), Digest.of(b"other")
    async with opened_store(tmp_path) as store:
        await store.links.put(HUB, "library/debian", {digest: 5, other: None})
        assert store.links.get(HUB, "library/debian", digest) == Link(5)
        assert store.links.get(HUB, "library/debian", other) == Link(None)
        assert store.links.get(HUB, "library/debia", digest) is None
        assert store.links.get("ghcr.io", "library/debian", digest) is None


async def test_later_link_does_not_remove_known_properties(tmp_path: Path) -> None:
    digest = Digest.of(b"layer")
    async with opened_store(tmp_path) as store:
        await store.links.put(HUB, "a", {digest: 5}, confirmed=False)
        assert store.links.get(HUB, "a", digest) == Link(5, confirmed=False)
        await store.links.put(HUB, "a", {digest: None}, given=True)
        await store.links.put(HUB, "a", {digest: None})
        await store.links.put(HUB, "a", {digest: None}, confirmed=False)
        assert store.links.get(HUB, "a", digest) == Link(5, confirmed=True, given=True)
