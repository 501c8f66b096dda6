"""Referrers are served from the store as the registry listed them, with the lifetimes of tags."""

import json
from pathlib import Path

import pytest
from hubcache.serve.messages import Answer, Change, Listener, Result
from support.engine import Cache, running
from support.referrers import MAX_STALE, REPO, SBOM, SIGNATURE, TTL, ask, referrer_fixtures, types
from support.standin import Fault, Hub, Image
from support.standin.media import OCI_INDEX
from support.users import EACH_LISTENER, Clock, pull
from support.workers import connected_worker

cache, image = referrer_fixtures()
pytestmark = pytest.mark.usefixtures("short_times")
FAILURES = pytest.mark.parametrize("failure", ["offline", "dead", "500", "429", "400", "html", "silent"])


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
