"""Facts about registries are stored by registry."""

from pathlib import Path

from hubcache.oci.digest import Digest
from support.stores import opened_store

HUB = "registry-1.docker.io"


async def test_challenge_is_stored_and_replaced(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        assert store.registries.challenge(HUB) is None
        await store.registries.put_challenge(HUB, "Bearer realm=a")
        await store.registries.put_challenge(HUB, "Bearer realm=b")
        assert store.registries.challenge(HUB) == "Bearer realm=b"


async def test_media_type_is_stored_by_registry(tmp_path: Path) -> None:
    digest = Digest.of(b"schema 1")
    async with opened_store(tmp_path) as store:
        await store.registries.put_media_type(HUB, digest, "a/b")
        assert store.registries.media_type(HUB, digest) == "a/b"
        assert store.registries.media_type("ghcr.io", digest) is None
