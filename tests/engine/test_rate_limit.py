"""The upstream's rate limit: few counted requests, metrics, and stored images that are served without any."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.oci.account import Account
from hubcache.serve.messages import Answer, Listener, Result
from support.engine import Cache, running
from support.standin import Fault, Hub, Image
from support.users import EACH_LISTENER, Clock, bearer, pull

HOST = "registry-1.docker.io"


pytestmark = pytest.mark.usefixtures("short_times")


@pytest.fixture
def image(hub: Hub) -> Image:
    hub.limit(50)
    return hub.image("library/app", "1")


@pytest.fixture
async def with_account(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    hub.user("robot", "robot's")
    async with running(hub, tmp_path / "store", account=Account("robot", "robot's")) as started:
        yield started


def reported_pulls(cache: Cache, credential: str) -> int | None:
    """Return the remaining pulls that metrics report."""
    line = f'hubcache_ratelimit_remaining{{credential="{credential}",host="{HOST}"}} '
    for text in cache.engine.metrics.render().decode().splitlines():
        if text.startswith(line):
            return int(float(text.removeprefix(line)))
    return None


# -- counted requests ------------------------------------------------------------------------------------------------


@EACH_LISTENER
async def test_first_pull_costs_one_counted_request_and_later_ones_none(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    for _ in range(3):
        assert set(await pull(cache, image, listener)) == {200}
    assert hub.remaining == 49


@EACH_LISTENER
async def test_pull_of_an_image_index_costs_one_counted_request_per_manifest(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    index = hub.index("library/app", "multi", {"linux/amd64": image})
    for _ in range(2):
        for path in ("manifests/multi", f"manifests/{index.digest}", f"manifests/{image.digest}"):
            for method in ("HEAD", "GET"):
                await cache.ask(listener, method, f"/v2/library/app/{path}")
    assert hub.remaining == 48


@EACH_LISTENER
async def test_validation_of_an_unmoved_tag_costs_no_counted_request(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    await pull(cache, image)
    hub.reset_log()
    cache.apply(tag_ttl=0.0)
    for method in ("HEAD", "GET") * 5:
        answer, _ = await cache.ask(listener, method, "/v2/library/app/manifests/1")
        assert isinstance(answer, Answer)
        assert answer.result is Result.REVALIDATED
    assert hub.remaining == 49
    assert {record.method for record in hub.requests(kind="manifest")} == {"HEAD"}
    assert hub.count(kind="manifest", status=200) == 10


@EACH_LISTENER
async def test_moved_tag_costs_one_counted_request(cache: Cache, hub: Hub, image: Image, listener: Listener) -> None:
    await pull(cache, image)
    cache.apply(tag_ttl=0.0)
    moved = hub.image("library/app", "1", [b"moved"])
    for _ in range(5):
        assert await cache.get(listener, "/v2/library/app/manifests/1") == (200, moved.manifest)
    assert hub.remaining == 48


@EACH_LISTENER
async def test_head_of_an_unknown_manifest_costs_no_counted_request(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    for reference in ("1", image.digest):
        answer, _ = await cache.ask(listener, "HEAD", f"/v2/library/app/manifests/{reference}")
        assert isinstance(answer, Answer)
        assert (answer.status, answer.length) == (200, len(image.manifest))
    assert hub.remaining == 50


async def test_tag_that_moved_to_a_stored_manifest_costs_no_counted_request(
    cache: Cache, hub: Hub, image: Image
) -> None:
    other = hub.image("library/app", "2", [b"two"])
    await pull(cache, image)
    await pull(cache, other)
    cache.apply(tag_ttl=0.0)
    hub.manifest("library/app", "1", other.manifest, other.media_type)
    assert await cache.get(Listener.PROXY, "/v2/library/app/manifests/1") == (200, other.manifest)
    assert hub.remaining == 48


# -- 429 -------------------------------------------------------------------------------------------------------------


@EACH_LISTENER
async def test_immediate_retries_after_a_429_cause_one_upstream_request(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    """containerd sends a HEAD, a GET, and five more GETs without a delay."""
    hub.limit(0)
    for method in ("HEAD", *("GET",) * 6):
        answer, body = await cache.ask(listener, method, "/v2/library/app/manifests/1")
        assert isinstance(answer, Answer)
        if method == "GET":
            assert answer.status == 429
            assert b'"TOOMANYREQUESTS"' in body
            assert 50 <= int(answer.headers["Retry-After"]) <= 60
    assert hub.count(kind="manifest", method="GET", status=429) == 1


@EACH_LISTENER
async def test_concurrent_clients_cause_one_upstream_429(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    hub.limit(0)
    answers = await asyncio.gather(*(cache.get(listener, "/v2/library/app/manifests/1") for _ in range(20)))
    assert {status for status, _ in answers} == {429}
    assert hub.count(kind="manifest", method="GET", status=429) == 1


async def test_retries_of_a_user_without_remaining_pulls_cause_one_upstream_request(
    cache: Cache, hub: Hub, image: Image
) -> None:
    """All credentials have been tried; further requests with the user's own are not sent upstream."""
    hub.user("bob", "bob's")
    own = bearer(hub, "bob", "library/app")
    hub.faults.add(Fault(kind="manifest", method="GET", status=429, headers={"Retry-After": "60"}))
    for _ in range(6):
        answer, body = await cache.ask(Listener.PROXY, "GET", "/v2/library/app/manifests/1", authorization=own)
        assert isinstance(answer, Answer)
        assert answer.status == 429
        assert b'"TOOMANYREQUESTS"' in body
    assert hub.count(kind="manifest", method="GET", status=429) == 2


async def test_upstream_is_contacted_again_after_retry_after(
    cache: Cache, hub: Hub, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    hub.limit(0)
    for ahead, expected in ((0, 1), (55, 1), (61, 2)):
        clock.ahead = ahead
        assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/1"))[0] == 429
        assert hub.count(method="GET", status=429) == expected
    hub.limit(10)
    clock.ahead = 130
    assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/1"))[0] == 200


@pytest.mark.parametrize(
    ("header", "seconds"), [({"Retry-After": "300"}, 300), ({}, 60)], ids=["with header", "without header"]
)
async def test_pause_lasts_for_retry_after_or_a_minute(
    cache: Cache, hub: Hub, image: Image, header: dict[str, str], seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker Hub's abuse limit counts all requests, and its 429 is plain text without `Retry-After`."""
    clock = Clock(monkeypatch, cache)
    hub.faults.add(Fault(kind="manifest", status=429, body="Too Many Requests (HAP429).", headers=header, times=1))
    for ahead, status in ((0, 429), (seconds - 5, 429), (seconds + 5, 200)):
        clock.ahead = ahead
        assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/1"))[0] == status


@EACH_LISTENER
async def test_stored_image_is_served_when_no_pulls_remain(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    """If its tag has moved, the old image is served and marked as stale."""
    await pull(cache, image)
    cache.apply(tag_ttl=0.0)
    hub.limit(0)
    assert set(await pull(cache, image, listener)) == {200}
    hub.image("library/app", "1", [b"moved"])
    for _ in range(6):
        answer, body = await cache.ask(listener, "GET", "/v2/library/app/manifests/1")
        assert isinstance(answer, Answer)
        assert (answer.result, body) == (Result.STALE, image.manifest)
    assert hub.count(method="GET", status=429) == 1


async def test_reason_of_a_stale_answer_is_logged(
    cache: Cache, hub: Hub, image: Image, caplog: pytest.LogCaptureFixture
) -> None:
    await pull(cache, image)
    cache.apply(tag_ttl=0.0)
    hub.faults.add(Fault(kind="manifest", status=429, body="no"))
    with caplog.at_level("INFO", "hubcache"):
        await cache.get(Listener.PROXY, "/v2/library/app/manifests/1")
    assert "rate limit of the upstream exceeded" in caplog.text


async def test_retries_do_not_reach_a_rate_limited_token_service(cache: Cache, hub: Hub, image: Image) -> None:
    hub.faults.add(Fault(kind="token", status=429, body="no", headers={"Retry-After": "60"}))
    for _ in range(6):
        assert (await cache.get(Listener.PROXY, "/v2/library/app/manifests/1"))[0] == 429
    assert hub.count(kind="token") == 1


# -- whose limit -----------------------------------------------------------------------------------------------------


async def test_miss_uses_the_clients_own_token(with_account: Cache, hub: Hub, image: Image) -> None:
    hub.user("bob", "bob's")
    own = bearer(hub, "bob", "library/app")
    assert set(await pull(with_account, image, authorization=own)) == {200}
    assert [record.user for record in hub.requests(kind="manifest", method="GET", status=200)] == ["bob"]
    assert {record.user for record in hub.requests(kind="blob", method="GET", status=307)} == {"bob"}


@EACH_LISTENER
async def test_miss_uses_the_account_for_clients_without_a_token(
    with_account: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    assert set(await pull(with_account, image, listener)) == {200}
    assert [record.user for record in hub.requests(kind="manifest", method="GET", status=200)] == ["robot"]


@EACH_LISTENER
async def test_miss_is_anonymous_without_token_and_account(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    assert set(await pull(cache, image, listener)) == {200}
    assert [record.user for record in hub.requests(kind="manifest", method="GET", status=200)] == [""]


@pytest.mark.parametrize("unfit", ["for another repository", "expired", "made up"])
async def test_token_without_access_is_skipped(with_account: Cache, hub: Hub, image: Image, unfit: str) -> None:
    hub.user("bob", "bob's")
    hub.image("library/other", "1", [b"another"])
    own = bearer(hub, "bob", "library/other" if unfit == "for another repository" else "library/app")
    if unfit == "expired":
        hub.accounts.revoke()
    assert set(await pull(with_account, image, authorization="Bearer x" if unfit == "made up" else own)) == {200}
    assert [record.user for record in hub.requests(kind="manifest", method="GET", status=200)] == ["robot"]


async def test_next_credentials_are_used_when_no_pulls_remain(with_account: Cache, hub: Hub, image: Image) -> None:
    """The client's own credentials are used first, then the account's, then none."""
    hub.user("bob", "bob's")
    own = bearer(hub, "bob", "library/app")
    for count, expected in ((1, "robot"), (2, "")):
        fresh = hub.image("library/app", str(count), [str(count).encode()])
        hub.faults.clear()
        hub.faults.add(Fault(kind="manifest", method="GET", status=429, times=count))
        with_account.engine.service._upstreams[HOST]._pauses._until.clear()
        status, body = await with_account.get(Listener.PROXY, f"/v2/library/app/manifests/{count}", authorization=own)
        assert (status, body) == (200, fresh.manifest)
        assert [r.user for r in hub.requests(kind="manifest", method="GET", status=200)][-1] == expected


@EACH_LISTENER
async def test_refused_account_password_fails_no_pull(
    hub: Hub, image: Image, listener: Listener, tmp_path: Path
) -> None:
    async with running(hub, tmp_path / "store", account=Account("robot", "old")) as cache:
        assert set(await pull(cache, image, listener)) == {200}
    assert [record.user for record in hub.requests(kind="manifest", method="GET", status=200)] == [""]


# -- metrics ---------------------------------------------------------------------------------------------------------


async def test_remaining_pulls_are_reported_per_credential(with_account: Cache, hub: Hub, image: Image) -> None:
    hub.user("bob", "bob's")
    hub.faults.add(Fault(kind="manifest", method="GET", times=1, headers={"ratelimit-remaining": "7;w=21600"}))
    await with_account.get(
        Listener.PROXY, "/v2/library/app/manifests/1", authorization=bearer(hub, "bob", "library/app")
    )
    hub.image("library/app", "2", [b"two"])
    hub.faults.add(Fault(kind="manifest", method="GET", times=1, headers={"ratelimit-remaining": "150;w=21600"}))
    await with_account.get(Listener.PROXY, "/v2/library/app/manifests/2")
    assert (reported_pulls(with_account, "client"), reported_pulls(with_account, "account")) == (7, 150)
    assert reported_pulls(with_account, "anonymous") in (48, 49, 50), "as the HEADs reported"
    text = with_account.engine.metrics.render().decode()
    assert f'hubcache_ratelimit_limit{{credential="account",host="{HOST}"}} 100.0' in text


async def test_concurrent_pulls_of_several_repositories_are_reported_as_the_accounts(
    with_account: Cache, hub: Hub
) -> None:
    hub.limit(50)
    for name in ("one", "two"):
        hub.image(f"library/{name}", "1", [name.encode()])
    hub.faults.add(Fault(kind="manifest", method="GET", path="*/one/*", delay=0.3))
    await asyncio.gather(
        with_account.get(Listener.PROXY, "/v2/library/one/manifests/1"),
        with_account.get(Listener.PROXY, "/v2/library/two/manifests/1"),
    )
    assert hub.count(kind="manifest", method="GET", user="robot", status=200) == 2
    assert reported_pulls(with_account, "client") is None


async def test_no_limit_is_reported_without_the_upstreams_headers(cache: Cache, hub: Hub) -> None:
    image = hub.image("library/app", "1")
    await pull(cache, image)
    assert reported_pulls(cache, "anonymous") is None
