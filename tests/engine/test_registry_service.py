"""How requests are routed and answered: forwarding, conditional requests, listeners, and the kind of each answer."""

import pytest
from hubcache.oci.errors import StorageError
from hubcache.serve.messages import LOCAL_TOKEN, Answer, Change, Forward, Listener, Result
from support.engine import Cache
from support.standin import Hub, Image
from support.users import EACH_LISTENER, bearer

REPO = "library/app"


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image(REPO, "1")


async def forward(cache: Cache, listener: Listener, method: str, path: str, **headers: str) -> Forward:
    outcome, _ = await cache.ask(listener, method, path, **headers)
    assert isinstance(outcome, Forward)
    return outcome


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v2/", "ping"),
        (f"/v2/{REPO}/manifests/1", "manifest"),
        (f"/v2/{REPO}/manifests/none", "manifest"),
        (f"/v2/{REPO}/blobs/sha256:{'0' * 64}", "blob"),
        (f"/v2/{REPO}/tags/list", "other"),
        ("/v2/_catalog", "other"),
        ("/v2/UPPER/manifests/1", "other"),
    ],
)
async def test_each_outcome_has_the_kind_of_its_target(cache: Cache, image: Image, path: str, kind: str) -> None:
    outcome, _ = await cache.ask(Listener.PROXY, "GET", path)
    assert outcome.kind == kind


@EACH_LISTENER
async def test_ping_with_any_credentials_is_200(cache: Cache, hub: Hub, listener: Listener) -> None:
    status, body = await cache.get(listener, "/v2/", authorization=f"Bearer {LOCAL_TOKEN}")
    assert (status, body) == (200, b"{}")
    assert hub.count() == 0


@EACH_LISTENER
@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
async def test_writes_are_forwarded_with_the_clients_credentials(
    cache: Cache, image: Image, listener: Listener, method: str
) -> None:
    for path in (f"/v2/{REPO}/manifests/1", f"/v2/{REPO}/blobs/uploads/", "/v2/"):
        assert (await forward(cache, listener, method, path, authorization="Bearer own")).authorization == "Bearer own"


@EACH_LISTENER
async def test_writes_without_credentials_are_forwarded_without(cache: Cache, image: Image, listener: Listener) -> None:
    for headers in ({}, {"authorization": f"Bearer {LOCAL_TOKEN}"}):
        passed = await forward(cache, listener, "POST", f"/v2/{REPO}/blobs/uploads/", **headers)
        assert passed.authorization is None


@EACH_LISTENER
async def test_other_anonymous_reads_are_forwarded_with_an_anonymous_token(
    cache: Cache, hub: Hub, image: Image, listener: Listener
) -> None:
    passed = await forward(cache, listener, "GET", f"/v2/{REPO}/tags/list")
    assert hub.accounts.find(passed.authorization)[0] == "valid"
    passed = await forward(cache, listener, "GET", "/v2/_catalog")
    assert passed.authorization is None


async def test_only_writes_change_content(cache: Cache, image: Image) -> None:
    assert (await forward(cache, Listener.PROXY, "PUT", f"/v2/{REPO}/manifests/1")).change == Change(REPO, "1")
    assert (await forward(cache, Listener.PROXY, "DELETE", f"/v2/{REPO}/manifests/{image.digest}")).change == Change(
        REPO, image.digest
    )
    blob = image.layers[0]
    for method, path in (("DELETE", blob), ("PUT", f"uploads/1?digest={blob}"), ("POST", f"uploads/?digest={blob}")):
        change = (await forward(cache, Listener.PROXY, method, f"/v2/{REPO}/blobs/{path}")).change
        assert change == Change(REPO, blob, is_blob=True)
    assert (await forward(cache, Listener.PROXY, "POST", f"/v2/{REPO}/blobs/uploads/")).change is None
    assert (await forward(cache, Listener.PROXY, "GET", f"/v2/{REPO}/tags/list")).change is None


async def test_credentials_at_a_mirror_grant_no_access(cache: Cache, hub: Hub, image: Image) -> None:
    hub.private(REPO, {"alice": "secret"})
    own = bearer(hub, "alice", REPO)
    assert (await cache.get(Listener.MIRROR, f"/v2/{REPO}/manifests/1", authorization=own))[0] == 404
    assert [record for record in hub.log if record.authorization == own] == []


async def test_client_credentials_read_what_the_public_may_not(cache: Cache, hub: Hub) -> None:
    private = hub.image("team/app", "1")
    hub.private("team/app", {"alice": "secret"})
    own = bearer(hub, "alice", "team/app")
    for path in (f"manifests/{private.digest}", "manifests/1", f"blobs/{private.layers[0]}"):
        passed = await forward(cache, Listener.PROXY, "GET", f"/v2/team/app/{path}", authorization=own)
        assert (passed.authorization, passed.change) == (own, None)
        assert (await cache.get(Listener.PROXY, f"/v2/team/app/{path}"))[0] == 401


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ("", 200),
        ('"{}"', 304),
        ('W/"{}"', 304),
        ('"a", "{}" , "b"', 304),
        ("*", 304),
        ("{}", 200),
        ('"other"', 200),
        ('"{}', 200),
    ],
)
async def test_if_none_match_is_compared_with_the_digest(
    cache: Cache, image: Image, condition: str, status: int
) -> None:
    path = f"/v2/{REPO}/manifests/1"
    assert (await cache.get(Listener.PROXY, path, if_none_match=condition.format(image.digest)))[0] == status


@EACH_LISTENER
async def test_store_error_is_503_in_json(
    cache: Cache, image: Image, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise StorageError("index is gone")

    monkeypatch.setattr(cache.engine.store, "manifest", broken)
    status, body = await cache.get(listener, f"/v2/{REPO}/manifests/{image.digest}")
    assert status == 503
    assert b'"code": "UNAVAILABLE"' in body


@EACH_LISTENER
async def test_error_to_a_head_has_a_length_and_no_body(cache: Cache, image: Image, listener: Listener) -> None:
    answer, body = await cache.ask(listener, "HEAD", f"/v2/{REPO}/manifests/none")
    whole, expected = await cache.ask(listener, "GET", f"/v2/{REPO}/manifests/none")
    assert isinstance(answer, Answer)
    assert isinstance(whole, Answer)
    assert (answer.status, answer.length, body) == (whole.status, len(expected), b"")
    assert answer.result is Result.ERROR


async def test_only_a_mirror_returns_the_namespace(cache: Cache, image: Image) -> None:
    for listener, namespace in ((Listener.MIRROR, "docker.io"), (Listener.PROXY, None)):
        outcome, _ = await cache.ask(listener, "GET", f"/v2/{REPO}/manifests/1")
        assert isinstance(outcome, Answer)
        assert outcome.headers.get("OCI-Namespace") == namespace


async def test_delete_by_digest_invalidates_the_tags_of_the_manifest(cache: Cache, hub: Hub, image: Image) -> None:
    """Registries delete by digest, and with the manifest its tags."""
    for reference in ("1", image.digest):
        await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{reference}")
    held = hub.memory.repository(REPO)
    held.tags.clear()
    held.manifests.clear()
    await cache.engine.service.content_changed(cache.settings.registries[0], Change(REPO, image.digest))
    for reference in ("1", image.digest):
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{reference}"))[0] == 404
