"""Whoever pushes and deletes through the proxy sees what it would see without: the conformance suite's push and delete
parts, done both ways at the same registry, one after the other, and compared answer by answer."""

import socket
from collections.abc import Iterator, Mapping

import pytest
from support import program
from support.conformance import Conformance, Line
from support.http_client import PATIENCE, Answer, Exchange, head
from support.program import Door, Rig
from support.standin import Hub

rig, door = program.fixtures(hubcache_tag_ttl="600", hubcache_negative_ttl="600")


@pytest.fixture(params=["accounts", "open"])
def pusher(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Door]:
    """The proxy door of a registry with accounts, or of one where everybody may do everything."""
    rig.refresh()
    rig.hub.redirects = False
    rig.hub.user("alice", "alice's")
    rig.hub.auth = request.param == "accounts"
    yield rig.door("proxy")
    rig.check()


def direct(hub: Hub, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """The same client without a proxy."""
    fields = {"Host": "hub", "Connection": "close", **headers} | ({"Content-Length": str(len(body))} if body else {})
    with socket.create_connection(("localhost", hub.ports["registry"]), PATIENCE) as connection:
        connection.sendall(head(method, path, fields) + body)
        return Exchange(connection, method).finish()


def mode(pusher: Door) -> str:
    """Part of names, so that the tests of one kind of registry know nothing of the other's."""
    return "accounts" if pusher.hub.auth else "open"


def credentials(hub: Hub, *repos: str) -> dict[str, str]:
    if not hub.auth:
        return {}
    access = {repo: frozenset({"pull", "push", "delete"}) for repo in repos}
    return {"Authorization": f"Bearer {hub.accounts.issue('alice', access).value}"}


def transcript(pusher: Door, way: str, *, through: bool) -> list[Line]:
    repos = (f"alice/{way}-{mode(pusher)}", f"alice/{way}-{mode(pusher)}-other")
    own = credentials(pusher.hub, *repos)

    def ask(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if through:
            return pusher.request(method, path, own | dict(headers), body=body)
        return direct(pusher.hub, method, path, own | dict(headers), body)

    return Conformance(ask, *repos).run()


def test_push_and_delete_through_the_proxy_are_as_without_it(pusher: Door) -> None:
    expected, found = (transcript(pusher, way, through=way == "through") for way in ("direct", "through"))
    statuses = {status for _, status, _ in expected}
    assert {200, 201, 202, 204, 400, 404, 416} <= statuses, "it asks for all of that"
    for wanted, got in zip(expected, found, strict=True):
        assert got == wanted


@pytest.mark.parametrize("name", program.DOORS)
@pytest.mark.parametrize("how", ["post and put", "post only", "mount"])
def test_pushed_blob_is_there_for_all_at_once(pusher: Door, rig: Rig, name: str, how: str) -> None:
    """Also for whoever was told a moment ago that it is not."""
    reader, data = rig.door(name), f"{how} {name} {mode(pusher)}".encode()
    repo = f"alice/seen-{how.replace(' ', '-')}-{name}-{mode(pusher)}"
    pusher.hub.image(repo, "old")
    own = credentials(pusher.hub, repo, "alice/source")
    source = pusher.hub.blob("alice/source", data)
    for method in ("HEAD", "GET"):
        assert reader.blob(source, method=method, repo=repo).status == 404
    uploads = f"/v2/{repo}/blobs/uploads/"
    if how == "mount":
        path = f"{uploads}?mount={source}&from=alice/source"
        assert pusher.request("POST", path, own | {"Content-Length": "0"}).status == 201
    elif how == "post only":
        assert pusher.request("POST", f"{uploads}?digest={source}", own, body=data).status == 201
    else:
        place = pusher.request("POST", uploads, own | {"Content-Length": "0"}).headers["location"]
        assert pusher.request("PUT", f"{place}?digest={source}", own, body=data).status == 201
    assert reader.blob(source, repo=repo).body == data


@pytest.mark.parametrize("name", program.DOORS)
def test_deleted_blob_is_gone_at_once_and_only_there(pusher: Door, rig: Rig, name: str) -> None:
    reader, data = rig.door(name), f"deleted {name} {mode(pusher)}".encode()
    repos = [f"alice/{what}-{name}-{mode(pusher)}" for what in ("gone", "kept")]
    for repo in repos:
        digest = pusher.hub.image(repo, "1", [data]).layers[0]
        assert reader.manifest("1", repo=repo).status == 200
        assert reader.blob(digest, repo=repo).body == data
    reader.settle()
    own = credentials(pusher.hub, *repos)
    assert pusher.request("DELETE", f"/v2/{repos[0]}/blobs/{digest}", own).status == 202
    rig.hub.reset_log()
    for method in ("HEAD", "GET"):
        assert reader.blob(digest, method=method, repo=repos[0]).status == 404
    rig.hub.reset_log()
    assert reader.blob(digest, repo=repos[1]).body == data
    assert rig.hub.count() == 0, "what another repository has is as it was"


def test_delete_that_was_refused_drops_nothing(rig: Rig) -> None:
    rig.refresh()
    door = rig.door("proxy")
    digest = rig.hub.image(door.repo, "1", [b"stays"]).layers[0]
    assert door.manifest("1").status == 200
    assert door.blob(digest).body == b"stays"
    door.settle()
    rig.hub.reset_log()
    assert door.request("DELETE", f"/v2/{door.repo}/blobs/{digest}").status == 401
    assert door.blob(digest).body == b"stays"
    assert rig.hub.count(kind="blob", method="[GH]*") == 0
    rig.check()
