"""Referrers are served to clients with access only, and do not change who has access."""

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Answer, Listener, Result
from support.engine import Cache
from support.referrers import REPO, SBOM, SIGNATURE, TTL, ask, referrer_fixtures, types
from support.standin import Fault, Hub, Image
from support.standin.media import OCI_INDEX
from support.users import EACH_LISTENER, SECRET, Clock, bearer, pull, turn_private

cache, image = referrer_fixtures()
pytestmark = pytest.mark.usefixtures("short_times")


async def test_private_referrers_are_served_to_clients_with_access_only(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    hub.referrers = True
    hub.image(SECRET, None, [b"sbom"], subject=secret, artifact_type=SBOM)
    alice = bearer(hub, "alice", SECRET)
    assert (await cache_with_secret.get(Listener.PROXY, f"/v2/{SECRET}/manifests/1", authorization=alice))[0] == 200
    assert types(await ask(cache_with_secret, secret, authorization=alice)) == [SBOM]
    kept = await ask(cache_with_secret, secret, authorization=alice)
    assert kept.result is Result.HIT
    hosts = cache_with_secret.engine.store.private.sources(Digest.of(kept.body))
    assert hosts == {"registry-1.docker.io"}, "while other private content is, too"
    assert (await ask(cache_with_secret, secret)).status == 401
    assert (await ask(cache_with_secret, secret, Listener.MIRROR)).status == 404
    assert (await ask(cache_with_secret, secret, authorization=bearer(hub, "bob", SECRET))).status in (401, 403, 404)
    hub.stop()
    for headers in ({}, {"authorization": bearer(hub, "bob", SECRET)}):
        assert (await ask(cache_with_secret, secret, **headers)).status in (401, 404)


async def test_refused_client_does_not_hide_referrers_from_others(
    cache_with_secret: Cache, hub: Hub, secret: Image
) -> None:
    hub.referrers = True
    hub.image(SECRET, None, [b"sbom"], subject=secret, artifact_type=SBOM)
    hidden = hub.faults.add(Fault(kind="referrers", status=404))
    assert (await ask(cache_with_secret, secret, authorization=bearer(hub, "bob", SECRET))).status == 404
    hub.faults.remove(hidden)
    assert types(await ask(cache_with_secret, secret, authorization=bearer(hub, "alice", SECRET))) == [SBOM]


async def test_private_referrers_are_forwarded_where_private_images_are(cache: Cache, hub: Hub, secret: Image) -> None:
    path = f"/v2/{SECRET}/referrers/{secret.digest}"
    outcome, _ = await cache.ask(Listener.PROXY, "GET", path, authorization=bearer(hub, "alice", SECRET))
    assert not isinstance(outcome, Answer)
    assert (await ask(cache, secret)).status == 401


async def test_referrers_of_a_repository_that_turned_private_are_not_served(
    cache: Cache, hub: Hub, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    assert (await ask(cache, image)).status == 200
    turn_private(hub, REPO)
    clock.ahead = TTL + 1
    assert (await ask(cache, image)).status == 401
    assert (await ask(cache, image, Listener.MIRROR)).status == 404


@EACH_LISTENER
@pytest.mark.parametrize("outage", [False, True])
async def test_referrers_that_a_user_got_are_not_served_to_the_public(
    cache: Cache, hub: Hub, image: Image, listener: Listener, outage: bool
) -> None:
    """The repository turned private a moment ago, and the answer to a user's request does not show that."""
    cache.apply(authorize=True)
    turn_private(hub, REPO, alice="alice's")
    assert types(await ask(cache, image, authorization=bearer(hub, "alice", REPO))) == sorted([SBOM, SIGNATURE])
    if outage:
        hub.stop()
    assert (await ask(cache, image, listener)).status in (401, 404)


async def test_referrers_do_not_make_a_repository_public(cache: Cache, hub: Hub, secret: Image) -> None:
    """Some registries answer 200 with an empty page for any repository."""
    hub.faults.add(Fault(kind="referrers", status=200, body='{"manifests": []}', content_type=OCI_INDEX))
    assert (await ask(cache, secret)).status == 200
    assert cache.engine.store.registries.visibility("registry-1.docker.io", SECRET) is None


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_referrers_do_not_make_a_repository_private(
    cache: Cache, hub: Hub, image: Image, status: int
) -> None:
    """Some registries have no referrers API for anonymous clients of public images."""
    hub.faults.add(Fault(kind="referrers", status=status, body={"errors": []}))
    assert (await ask(cache, image)).status == status
    hub.stop()
    assert set(await pull(cache, image)) == {200}


@EACH_LISTENER
async def test_logged_in_client_gets_the_same_referrers_of_a_public_image(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    hub.user("carol", "carol's")
    await ask(cache, image, listener)
    hub.reset_log()
    assert types(await ask(cache, image, listener, authorization=bearer(hub, "carol", REPO))) == sorted(
        [SBOM, SIGNATURE]
    )
    assert hub.count() == 0
    hub.faults.add(Fault(status=500))
    tag = f"/v2/{REPO}/manifests/{image.digest.replace(':', '-')}"
    answer, _ = await cache.ask(listener, "GET", tag, authorization=bearer(hub, "carol", REPO))
    assert isinstance(answer, Answer)
    assert answer.status == 404


async def test_404_for_a_clients_token_does_not_apply_to_the_public(cache: Cache, hub: Hub, image: Image) -> None:
    """A HEAD shows that the tag is public; the GET is first sent with the client's token, and answered with 404."""
    hub.user("carol", "carol's")
    tag = image.digest.replace(":", "-") + ".sig"
    signature = hub.image(REPO, tag, [b"signed"])
    refused = hub.faults.add(Fault(path=f"*/manifests/{signature.digest}*", method="GET", status=404, times=1))
    path = f"/v2/{REPO}/manifests/{tag}"
    own = bearer(hub, "carol", REPO)
    assert await cache.get(Listener.PROXY, path, authorization=own) == (200, signature.manifest)
    assert refused.hits == 1
    assert hub.requests(path=f"*{signature.digest}*")[0].authorization == own
    assert await cache.get(Listener.PROXY, path) == (200, signature.manifest)
