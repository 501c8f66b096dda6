"""Referrers are served from the store as the registry listed them, with the lifetimes of tags."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Answer, Change, Listener, Result
from support.engine import Cache, running
from support.standin import Fault, Hub, Image
from support.standin.media import OCI_INDEX
from support.users import EACH_LISTENER, SECRET, Clock, bearer, pull, turn_private, until
from support.workers import connected_worker

REPO, TTL, MAX_STALE = "library/app", 600.0, 10_000.0
SBOM, SIGNATURE = "text/spdx+json", "application/vnd.dev.cosign.simplesigning.v1+json"
FAILURES = pytest.mark.parametrize("failure", ["offline", "dead", "500", "429", "400", "html", "silent"])


pytestmark = pytest.mark.usefixtures("short_times")


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


def cause_failure(cache: Cache, hub: Hub, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    match failure:
        case "offline":
            cache.apply(offline=True)
        case "dead":
            hub.stop()
        case "html":
            hub.faults.add(Fault(status=200, body="<html>hotel login</html>"))
        case "silent":
            monkeypatch.setattr("hubcache.serve.cached_referrers.PATIENCE_SECONDS", 0.1)
            monkeypatch.setattr("hubcache.serve.cached_referrers.WAIT_SECONDS", 0.1)
            hub.faults.add(Fault(kind="[!t]*", blackhole=True))
        case status:
            hub.faults.add(Fault(status=int(status)))


# -- freshness -------------------------------------------------------------------------------------------------------


@EACH_LISTENER
async def test_referrers_are_requested_once_in_a_tags_lifetime(
    cache: Cache, hub: Hub, image: Image, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    first, second = await ask(cache, image, listener), await ask(cache, image, listener)
    assert types(first) == types(second) == sorted([SBOM, SIGNATURE])
    assert (first.result, second.result) == (Result.MISS, Result.HIT)
    assert second.headers["Content-Type"] == OCI_INDEX
    assert second.headers["Cache-Status"].startswith("hubcache; hit; ttl=")
    assert hub.count(kind="referrers") == 1
    clock.ahead = TTL + 1
    assert (await ask(cache, image, listener)).result is Result.REVALIDATED
    hub.image(REPO, None, [b"another"], subject=image, artifact_type="another")
    clock.ahead = 2 * TTL + 2
    third = await ask(cache, image, listener)
    assert (third.result, "another" in types(third)) == (Result.MISS, True)
    assert hub.count(kind="referrers") == 3


@EACH_LISTENER
async def test_head_has_the_length_and_no_body(cache: Cache, image: Image, listener: Listener) -> None:
    whole, head = await ask(cache, image, listener), await ask(cache, image, listener, method="HEAD")
    assert (head.status, head.body, head.length) == (200, b"", len(whole.body))


@FAILURES
@EACH_LISTENER
async def test_stale_referrers_are_served_when_the_registry_fails(
    cache: Cache, hub: Hub, image: Image, listener: Listener, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    before = await ask(cache, image, listener)
    cause_failure(cache, hub, failure, monkeypatch)
    clock.ahead = TTL + 1
    found = await ask(cache, image, listener)
    assert (found.result, found.body) == (Result.STALE, before.body)
    assert "detail=" in found.headers["Cache-Status"]
    clock.ahead = TTL + MAX_STALE + 1
    assert (await ask(cache, image, listener)).status == 404


@FAILURES
@EACH_LISTENER
@pytest.mark.parametrize("suffix", ["", ".sig", ".att", ".sbom"])
async def test_referrers_that_were_never_requested_are_404_when_the_registry_fails(
    cache: Cache, hub: Hub, image: Image, listener: Listener, failure: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause_failure(cache, hub, failure, monkeypatch)
    tag = image.digest.replace(":", "-") + suffix
    for path in (f"referrers/{image.digest}", f"manifests/{tag}"):
        answer, body = await cache.ask(listener, "GET", f"/v2/{REPO}/{path}")
        assert isinstance(answer, Answer)
        assert (answer.status, answer.headers["Content-Type"]) == (404, "application/json")
        assert json.loads(body)["errors"][0]["code"] == "MANIFEST_UNKNOWN"


@EACH_LISTENER
async def test_other_tag_is_an_error_when_the_registry_is_down(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    hub.stop()
    for tag in ("2", "sha256-abc", f"x{image.digest.replace(':', '-')}"):
        assert (await cache.get(listener, f"/v2/{REPO}/manifests/{tag}"))[0] == 503


@EACH_LISTENER
@pytest.mark.parametrize("body", ["404 page not found\n", {"errors": [{"code": "NOT_FOUND", "message": "no"}]}])
async def test_registry_without_referrers_api_is_asked_once_in_a_tags_lifetime(
    cache: Cache, hub: Hub, image: Image, listener: Listener, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    hub.faults.add(Fault(kind="referrers", status=404, body=body))
    path = f"/v2/{REPO}/manifests/{image.digest.replace(':', '-')}"
    for age, requests in ((0, 1), (TTL - 1, 1), (TTL + 1, 2)):
        clock.ahead = age
        for _ in range(2):
            assert (await ask(cache, image, listener)).status == 404
            assert (await cache.get(listener, path))[0] == 404
        assert hub.count(kind="referrers") == requests
        assert hub.count(kind="manifest", path="*sha256-*") == requests
    assert (await cache.get(listener, f"/v2/{REPO}/manifests/1"))[0] == 200


async def test_404_is_remembered_after_a_restart(hub: Hub, tmp_path: Path) -> None:
    image = hub.image(REPO, "1")
    tag = f"/v2/{REPO}/manifests/{image.digest.replace(':', '-')}.sig"
    async with running(hub, tmp_path / "store", tag_ttl=TTL) as cache:
        await pull(cache, image)
        assert (await ask(cache, image)).status == (await cache.get(Listener.PROXY, tag))[0] == 404
    hub.reset_log()
    async with running(hub, tmp_path / "store", tag_ttl=TTL) as cache:
        assert (await ask(cache, image)).status == (await cache.get(Listener.PROXY, tag))[0] == 404
    assert hub.count() == 0


async def test_fallback_tag_is_found_once_it_is_pushed(
    cache: Cache, hub: Hub, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache)
    tag = f"{image.digest.replace(':', '-')}.sig"
    assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{tag}"))[0] == 404
    signature = hub.image(REPO, tag, [b"signature"])
    clock.ahead = TTL + 1
    assert await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{tag}") == (200, signature.manifest)
    hub.stop()
    clock.ahead = 3 * TTL
    assert await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{tag}") == (200, signature.manifest)


# -- queries -----------------------------------------------------------------------------------------------------------


@EACH_LISTENER
async def test_referrers_filtered_by_type_are_a_separate_answer(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    for _ in range(2):
        found = await ask(cache, image, listener, f"artifactType={SBOM.replace('/', '%2F').replace('+', '%2B')}")
        assert types(found) == [SBOM]
        assert found.headers["OCI-Filters-Applied"] == "artifactType"
        assert "OCI-Filters-Applied" not in (await ask(cache, image, listener)).headers
    assert hub.count(kind="referrers") == 2


@EACH_LISTENER
async def test_equivalent_queries_are_requested_once(cache: Cache, hub: Hub, image: Image, listener: Listener) -> None:
    for query in ("artifactType=a%2Fb&n=3", "n=3&artifactType=a/b", "ns=docker.io&n=3&artifactType=a%2fb"):
        assert (await ask(cache, image, listener, query)).status == 200
    assert hub.count(kind="referrers") == 1


@EACH_LISTENER
async def test_next_page_is_at_the_same_listener_and_does_not_name_the_registry(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    hub.referrers_page = 1
    own = "" if listener is Listener.PROXY else "ns=docker.io"
    for _ in range(2):
        first = await ask(cache, image, listener, own)
        link = first.headers["Link"]
        assert link.startswith(f"</v2/{REPO}/referrers/{image.digest}?last=1")
        assert link.endswith('>; rel="next"')
        assert ("ns=docker.io" in link) is (listener is Listener.MIRROR)
        assert "localhost" not in str(first.headers)
        second = await ask(cache, image, listener, link.partition("?")[2].partition(">")[0])
        assert "Link" not in second.headers
        assert sorted(types(first) + types(second)) == sorted([SBOM, SIGNATURE])
    assert hub.count(kind="referrers") == 2


@pytest.mark.parametrize(
    "link",
    [
        "<https://elsewhere.example/page/2>",
        "</v2/library/other/referrers/sha256:00>",
        "<http://[>",
        "<0://[]@>",
        f"<?last={'x' * 5000}>",
    ],
)
async def test_referrers_with_an_invalid_next_page_are_not_served_as_complete(
    cache: Cache, hub: Hub, image: Image, link: str
) -> None:
    hub.faults.add(Fault(kind="referrers", headers={"Link": f'{link}; rel="next"'}))
    assert (await ask(cache, image)).status == 404


@pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"manifests": 5}', '{"manifests": [{}]}', "[" * 100_000])
async def test_invalid_referrers_page_is_not_served(cache: Cache, hub: Hub, image: Image, body: str) -> None:
    hub.faults.add(Fault(kind="referrers", status=200, body=body, content_type=OCI_INDEX))
    assert (await ask(cache, image)).status == 404
    hub.faults.clear()
    assert types(await ask(cache, image)) == sorted([SBOM, SIGNATURE])


async def test_empty_referrers_page_is_accepted_in_any_form(cache: Cache, hub: Hub, image: Image) -> None:
    hub.faults.add(Fault(kind="referrers", status=200, body='{"manifests": null}', content_type=OCI_INDEX))
    assert (await ask(cache, image)).status == 200


async def test_requests_for_unknown_subjects_are_not_stored(cache: Cache, hub: Hub, image: Image) -> None:
    for number in range(50):
        unknown = Digest.of(str(number).encode())
        await cache.get(Listener.PROXY, f"/v2/{REPO}/referrers/{unknown}")
        await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{unknown.replace(':', '-')}.{number}")
        await cache.get(Listener.PROXY, f"/v2/{REPO}/referrers/{image.digest}?artifactType={number}")
        await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{image.digest.replace(':', '-')}.{number}")
    store = cache.engine.store
    rows = list(store.index.opened().rows("referrers/"))
    assert [key.partition("@")[2] for key, _, _, _ in rows] == [image.digest]
    assert len(store.tags.referrers("registry-1.docker.io", REPO, Digest.parse(image.digest))) == 32


@pytest.mark.parametrize("what", ["listing", "tag"])
async def test_404_that_arrives_after_a_push_is_not_remembered(cache: Cache, hub: Hub, image: Image, what: str) -> None:
    """The 404 is older than the push, and a client that has pushed a signature then requests it."""
    tag = image.digest.replace(":", "-") + ".sig"
    path = f"/v2/{REPO}/" + (f"referrers/{image.digest}" if what == "listing" else f"manifests/{tag}")
    late = hub.faults.add(Fault(path=f"{path}*", status=404, delay=0.3, times=1))
    asking = asyncio.create_task(cache.get(Listener.PROXY, path))
    await until(lambda: late.hits)
    signature = hub.image(REPO, tag, [b"pushed"], subject=image, artifact_type=SIGNATURE)
    await cache.engine.content_changed(cache.settings.registries[0], Change(REPO, signature.digest), image.digest)
    assert (await asking)[0] == 404
    assert (await cache.get(Listener.PROXY, path))[0] == 200


# -- access ------------------------------------------------------------------------------------------------------------


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


# -- cosign ---------------------------------------------------------------------------------------------------------


@EACH_LISTENER
@pytest.mark.parametrize("by", ["tag", "api"])
async def test_signature_verified_online_is_verified_offline(
    cache: Cache, hub: Hub, image: Image, listener: Listener, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests of cosign: the image's digest, its signatures (by tag, or by type), a signature's layers."""
    clock = Clock(monkeypatch, cache)
    tag = image.digest.replace(":", "-") + ".sig"
    signature = hub.image(REPO, tag if by == "tag" else None, [b"signed"], subject=image, artifact_type=SIGNATURE)
    listing = f"referrers/{image.digest}?artifactType={SIGNATURE.replace('/', '%2F').replace('+', '%2B')}"
    paths = [
        "manifests/1",
        f"manifests/{tag}" if by == "tag" else listing,
        f"manifests/{signature.digest}",
        f"blobs/{signature.layers[0]}",
    ]
    online = [await cache.get(listener, f"/v2/{REPO}/{path}") for path in paths]
    assert [status for status, _ in online] == [200] * len(paths)
    hub.stop()
    clock.ahead = MAX_STALE / 2
    assert [await cache.get(listener, f"/v2/{REPO}/{path}") for path in paths] == online


# -- workers --------------------------------------------------------------------------------------------------------


async def test_worker_passes_the_subject_of_a_push_to_the_owner(hub: Hub, tmp_path: Path) -> None:
    hub.referrers = True
    image, other = hub.image(REPO, "1", [b"one"]), hub.image(REPO, "2", [b"two"])
    async with running(hub, tmp_path / "store", tag_ttl=TTL) as cache, connected_worker(cache) as pair:
        paths = [f"/v2/{REPO}/referrers/{one.digest}" for one in (image, other)]
        for one in (image, other):
            assert (await pair.get(f"/v2/{REPO}/manifests/{one.tag}")).status == 200
        for path in paths:
            assert (await pair.get(path)).status == 200
        registry = cache.settings.registries[0]
        await pair.remote.content_changed(registry, Change(REPO, "pushed"), image.digest)
        assert [(await pair.get(path)).result for path in paths] == [Result.MISS, Result.HIT]
        await pair.remote.content_changed(registry, Change(REPO, "pushed"), None)
        await pair.remote.content_changed(registry, Change(REPO, "pushed"), "nonsense")
        assert [(await pair.get(path)).result for path in paths] == [Result.MISS, Result.MISS]
