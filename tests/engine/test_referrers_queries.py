"""Referrers filtered by type, in pages, and of subjects that are unknown."""

import asyncio

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Change, Listener
from support.engine import Cache
from support.referrers import REPO, SBOM, SIGNATURE, ask, referrer_fixtures, types
from support.standin import Fault, Hub, Image
from support.standin.media import OCI_INDEX
from support.users import EACH_LISTENER, until

cache, image = referrer_fixtures()
pytestmark = pytest.mark.usefixtures("short_times")


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
