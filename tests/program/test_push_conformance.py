"""Whoever pushes and deletes through the proxy sees what it would see without: the conformance suite's push and delete
parts, done both ways at the same registry, one after the other, and compared answer by answer."""

import socket
from collections.abc import Iterator, Mapping

import pytest
from support.conformance import Conformance, Line
from support.http_client import TIMEOUT, Answer, Exchange, head
from support.program import LISTENERS, Program, RegistryClient, program_fixtures
from support.standin import Hub

program, client = program_fixtures(hubcache_tag_ttl="600", hubcache_negative_ttl="600")


@pytest.fixture(params=["accounts", "open"])
def push_client(request: pytest.FixtureRequest, program: Program) -> Iterator[RegistryClient]:
    """The proxy door of a registry with accounts, or of one where everybody may do everything."""
    program.reset()
    program.hub.redirects = False
    program.hub.user("alice", "alice's")
    program.hub.auth = request.param == "accounts"
    yield program.client("proxy")
    program.assert_no_errors()


def direct(hub: Hub, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """The same client without a proxy."""
    fields = {"Host": "hub", "Connection": "close", **headers} | ({"Content-Length": str(len(body))} if body else {})
    with socket.create_connection(("localhost", hub.ports["registry"]), TIMEOUT) as connection:
        connection.sendall(head(method, path, fields) + body)
        return Exchange(connection, method).finish()


def mode(push_client: RegistryClient) -> str:
    """Part of names, so that the tests of one kind of registry know nothing of the other's."""
    return "accounts" if push_client.hub.auth else "open"


def credentials(hub: Hub, *repos: str) -> dict[str, str]:
    if not hub.auth:
        return {}
    access = {repo: frozenset({"pull", "push", "delete"}) for repo in repos}
    return {"Authorization": f"Bearer {hub.accounts.issue('alice', access).value}"}


def transcript(push_client: RegistryClient, way: str, *, through: bool) -> list[Line]:
    repos = (f"alice/{way}-{mode(push_client)}", f"alice/{way}-{mode(push_client)}-other")
    own = credentials(push_client.hub, *repos)

    def ask(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        if through:
            return push_client.request(method, path, own | dict(headers), body=body)
        return direct(push_client.hub, method, path, own | dict(headers), body)

    return Conformance(ask, *repos).run()


def test_push_and_delete_through_the_proxy_are_as_without_it(push_client: RegistryClient) -> None:
    expected, found = (transcript(push_client, way, through=way == "through") for way in ("direct", "through"))
    statuses = {status for _, status, _ in expected}
    assert {200, 201, 202, 204, 400, 404, 416} <= statuses, "it asks for all of that"
    for wanted, got in zip(expected, found, strict=True):
        assert got == wanted


@pytest.mark.parametrize("name", LISTENERS)
@pytest.mark.parametrize("how", ["post and put", "post only", "mount"])
def test_pushed_blob_is_there_for_all_at_once(
    push_client: RegistryClient, program: Program, name: str, how: str
) -> None:
    """Also for whoever was told a moment ago that it is not."""
    reader, data = program.client(name), f"{how} {name} {mode(push_client)}".encode()
    repo = f"alice/seen-{how.replace(' ', '-')}-{name}-{mode(push_client)}"
    push_client.hub.image(repo, "old")
    own = credentials(push_client.hub, repo, "alice/source")
    source = push_client.hub.blob("alice/source", data)
    for method in ("HEAD", "GET"):
        assert reader.blob(source, method=method, repo=repo).status == 404
    uploads = f"/v2/{repo}/blobs/uploads/"
    if how == "mount":
        path = f"{uploads}?mount={source}&from=alice/source"
        assert push_client.request("POST", path, own | {"Content-Length": "0"}).status == 201
    elif how == "post only":
        assert push_client.request("POST", f"{uploads}?digest={source}", own, body=data).status == 201
    else:
        place = push_client.request("POST", uploads, own | {"Content-Length": "0"}).headers["location"]
        assert push_client.request("PUT", f"{place}?digest={source}", own, body=data).status == 201
    assert reader.blob(source, repo=repo).body == data


@pytest.mark.parametrize("name", LISTENERS)
def test_deleted_blob_is_gone_at_once_and_only_there(push_client: RegistryClient, program: Program, name: str) -> None:
    reader, data = program.client(name), f"deleted {name} {mode(push_client)}".encode()
    repos = [f"alice/{what}-{name}-{mode(push_client)}" for what in ("gone", "kept")]
    for repo in repos:
        digest = push_client.hub.image(repo, "1", [data]).layers[0]
        assert reader.manifest("1", repo=repo).status == 200
        assert reader.blob(digest, repo=repo).body == data
    reader.wait_until_stored()
    own = credentials(push_client.hub, *repos)
    assert push_client.request("DELETE", f"/v2/{repos[0]}/blobs/{digest}", own).status == 202
    program.hub.reset_log()
    for method in ("HEAD", "GET"):
        assert reader.blob(digest, method=method, repo=repos[0]).status == 404
    program.hub.reset_log()
    assert reader.blob(digest, repo=repos[1]).body == data
    assert program.hub.count() == 0, "what another repository has is as it was"


def test_delete_that_was_refused_drops_nothing(program: Program) -> None:
    program.reset()
    client = program.client("proxy")
    digest = program.hub.image(client.repo, "1", [b"stays"]).layers[0]
    assert client.manifest("1").status == 200
    assert client.blob(digest).body == b"stays"
    client.wait_until_stored()
    program.hub.reset_log()
    assert client.request("DELETE", f"/v2/{client.repo}/blobs/{digest}").status == 401
    assert client.blob(digest).body == b"stays"
    assert program.hub.count(kind="blob", method="[GH]*") == 0
    program.assert_no_errors()
