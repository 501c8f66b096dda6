"""The configured account and public answers do not open private repositories to other clients."""

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
from hubcache.oci.account import Account
from hubcache.serve.messages import Answer, Listener
from support.engine import Cache, running
from support.standin import Fault, Hub, Image, random_bytes
from support.users import EACH_LISTENER, REFUSED, SECRET, assert_refused, bearer, pull, requests_of, turn_private


@pytest.fixture
async def with_account(hub: Hub, secret: Image, tmp_path: Path) -> AsyncIterator[Cache]:
    """A cache whose configured account may read alice's private repository."""
    hub.user("robot", "robot's")
    hub.accounts.private[SECRET].add("robot")
    async with running(hub, tmp_path / "account", account=Account("robot", "robot's")) as started:
        yield started


@EACH_LISTENER
@pytest.mark.parametrize("authorize", [False, True], ids=["bypass", "authorize"])
async def test_account_with_access_does_not_read_a_private_image_for_anonymous_clients(
    with_account: Cache, hub: Hub, secret: Image, listener: Listener, authorize: bool
) -> None:
    with_account.apply(authorize=authorize)
    await assert_refused(with_account, secret, listener)
    assert with_account.engine.store.usage.sizes == {}
    assert hub.count(user="robot", status=200, kind="[mb]*") == 0


async def test_account_with_access_does_not_read_a_private_image_for_another_user(
    with_account: Cache, hub: Hub, secret: Image
) -> None:
    with_account.apply(authorize=True)
    await assert_refused(with_account, secret, Listener.PROXY, authorization=bearer(hub, "bob", SECRET))


@EACH_LISTENER
@pytest.mark.parametrize("what", ["digest", "tag", "layer"])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_account_does_not_read_content_pushed_after_the_repository_turned_private(
    with_account: Cache, hub: Hub, listener: Listener, method: str, what: str
) -> None:
    """Content pushed after the change was never public, although the repository is still recorded as public."""
    public = hub.image("alice/app", "1")
    assert set(await pull(with_account, public)) == {200}
    turn_private(hub, "alice/app", robot="robot's")
    new = hub.image("alice/app", "2", [random_bytes(1000, "new")])
    path = {"digest": f"manifests/{new.digest}", "tag": "manifests/2", "layer": f"blobs/{new.layers[0]}"}[what]
    answer, body = await with_account.ask(listener, method, f"/v2/alice/app/{path}")
    assert isinstance(answer, Answer)
    assert answer.status == REFUSED[listener]
    assert new.manifest not in body


@EACH_LISTENER
async def test_users_read_does_not_publish_content_pushed_after_the_repository_turned_private(
    cache: Cache, hub: Hub, listener: Listener
) -> None:
    """alice reads by digest with her own token, which does not show that the content is public."""
    public = hub.image("alice/app", "1")
    assert set(await pull(cache, public)) == {200}
    turn_private(hub, "alice/app")
    new = hub.image("alice/app", "2", [random_bytes(1000, "new")])
    path = f"/v2/alice/app/manifests/{new.digest}"
    await cache.ask(Listener.PROXY, "GET", path, authorization=bearer(hub, "alice", "alice/app"))
    status, body = await cache.get(listener, path)
    assert (status, new.manifest in body) == (REFUSED[listener], False)


@EACH_LISTENER
async def test_account_reads_public_images(with_account: Cache, hub: Hub, listener: Listener) -> None:
    """The account is used for public repositories."""
    image = hub.image("library/app", "1")
    status, body = await with_account.get(listener, "/v2/library/app/manifests/1")
    assert (status, sha256(body).hexdigest()) == (200, image.digest.removeprefix("sha256:"))
    assert hub.count(kind="manifest", method="GET", user="robot", status=200) == 1


@EACH_LISTENER
async def test_html_page_does_not_make_a_private_repository_public(
    cache_with_secret: Cache, hub: Hub, secret: Image, listener: Listener
) -> None:
    """A captive portal or a maintenance page answers 200 to every request, also without credentials."""
    assert set(await pull(cache_with_secret, secret, authorization=bearer(hub, "alice", SECRET))) == {200}
    hub.faults.add(Fault(kind="[mb]*", status=200, body="<html>maintenance</html>"))
    unknown = f"sha256:{'0' * 64}"
    others = (f"blobs/{unknown}", f"manifests/{unknown}", "manifests/other")
    for method, path in [*requests_of(secret), *(("GET", f"/v2/{SECRET}/{what}") for what in others)]:
        answer, _ = await cache_with_secret.ask(listener, method, path)
        assert isinstance(answer, Answer)
        assert answer.status in (401, 404, 502), (method, path)
    hub.faults.clear()
    cache_with_secret.engine._access._negative_cache._errors.clear()
    await assert_refused(cache_with_secret, secret, listener)
