"""A change of options while the engine runs takes effect at once and keeps unrelated state."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.oci.account import Account
from hubcache.oci.digest import Digest
from hubcache.oci.registry import Registry
from hubcache.serve.messages import Forward, Listener
from support.engine import Cache, running
from support.standin import Fault, Hub, Image
from support.users import bearer, pull

REPO = "library/app"


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image(REPO, "1")


@pytest.fixture
async def cache(hub: Hub, image: Image, tmp_path: Path) -> AsyncIterator[Cache]:
    async with running(hub, tmp_path / "store") as started:
        yield started


async def test_pause_of_a_registry_continues_after_a_change_of_options(cache: Cache, hub: Hub) -> None:
    hub.faults.add(Fault(kind="manifest", status=429, headers={"Retry-After": "60"}))
    assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 429
    hub.reset_log()
    for change in ({"tag_ttl": 1.0}, {"negative_ttl": 1.0}, {"account": Account("alice", "secret")}, {"size": 1 << 25}):
        cache.apply(**change)
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 429
    assert hub.count() == 0


async def test_challenge_and_tokens_are_kept_after_a_change_of_options(cache: Cache, hub: Hub, image: Image) -> None:
    await pull(cache, image)
    hub.reset_log()
    cache.apply(tag_ttl=0.0)
    assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 200
    assert [record.kind for record in hub.log] == ["manifest"]


async def test_pull_during_a_change_of_options_counts_once(cache: Cache, image: Image) -> None:
    """Retention counts pulls, and the requests that belong to one pull count once."""
    retention, counted = cache.engine.store.capacity.retention, []
    for ttl in (600.0, 500.0, 400.0):
        cache.apply(tag_ttl=ttl)
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{image.digest}"))[0] == 200
        counted.append(retention.requests(Digest.parse(image.digest), time.time()))
    assert counted == pytest.approx([counted[0]] * 3, abs=0.01)


async def test_changed_account_is_used_at_once_and_tokens_of_the_old_one_are_dropped(
    cache: Cache, hub: Hub, image: Image
) -> None:
    users = []
    for name in ("alice", "bob"):
        hub.user(name, "secret")
        cache.apply(account=Account(name, "secret"))
        layer = hub.image(REPO, name, [name.encode()])
        hub.reset_log()
        await pull(cache, layer)
        users.append({record.user for record in hub.requests(kind="manifest", method="GET")})
    cache.apply(account=None)
    hub.reset_log()
    await pull(cache, hub.image(REPO, "none", [b"none"]))
    users.append({record.user for record in hub.requests(kind="manifest", method="GET")})
    assert users == [{"alice"}, {"bob"}, {""}]


async def test_registries_are_added_changed_and_removed(cache: Cache, hub: Hub) -> None:
    first = cache.engine.service
    with Hub() as other:
        other.image("library/other", "1")
        hub_registry, added = cache.settings.registries[0], Registry.parse(f"ghcr.io={other.url()}")
        cache.apply(registries=(added, hub_registry))
        assert (await cache.get(Listener.PROXY, "/v2/library/other/manifests/1"))[0] == 200
        cache.apply(registries=(Registry.parse(f"ghcr.io={hub.url()}"),))
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 200
    assert cache.engine.service is first


async def test_option_for_private_images_takes_effect_at_once(cache: Cache, hub: Hub) -> None:
    hub.image("alice/secret", "1", [b"a secret"])
    hub.private("alice/secret", {"alice": "alice's"})
    path, own = "/v2/alice/secret/manifests/1", bearer(hub, "alice", "alice/secret")
    assert isinstance((await cache.ask(Listener.PROXY, "GET", path, authorization=own))[0], Forward)
    cache.apply(authorize=True)
    assert (await cache.get(Listener.PROXY, path, authorization=own))[0] == 200
    cache.apply(authorize=False)
    assert isinstance((await cache.ask(Listener.PROXY, "GET", path, authorization=own))[0], Forward)


async def test_option_for_mirror_misses_takes_effect_at_once(cache: Cache) -> None:
    cache.apply(offer_only=True)
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 404
    cache.apply(offer_only=False)
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1"))[0] == 200
