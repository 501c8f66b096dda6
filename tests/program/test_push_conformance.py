"""Pushes and deletions get the same answers through the proxy as without it.

The push and delete parts of the conformance suite run both ways at one registry, one after the other, and are compared
answer by answer.
"""

import functools
from collections.abc import Iterator, Mapping

import pytest
from support.conformance import Conformance, Step
from support.http_client import Answer, request
from support.program import LISTENERS, Program, RegistryClient, program_fixtures
from support.pushes import EMPTY
from support.standin import Hub

program, _ = program_fixtures(hubcache_tag_ttl="600", hubcache_negative_ttl="600")


@pytest.fixture(params=["accounts", "open"])
def push_client(request: pytest.FixtureRequest, program: Program) -> Iterator[RegistryClient]:
    """A client of the proxy; its registry has accounts, or permits all clients to push and delete."""
    program.reset()
    program.hub.redirects = False
    program.hub.user("alice", "alice's")
    program.hub.auth = request.param == "accounts"
    yield program.client("proxy")
    program.assert_no_errors()


def mode(push_client: RegistryClient) -> str:
    """Return the kind of registry, for repository names that differ between the tests of the two."""
    return "accounts" if push_client.hub.auth else "open"


def credentials(hub: Hub, *repos: str) -> dict[str, str]:
    """Return the `Authorization` of alice for these repositories; nothing without accounts."""
    if not hub.auth:
        return {}
    access = {repo: frozenset({"pull", "push", "delete"}) for repo in repos}
    return {"Authorization": f"Bearer {hub.accounts.issue('alice', access).value}"}


def recorded_steps(push_client: RegistryClient, route: str) -> list[Step]:
    """Run the requests by a route ("direct" or "proxy") in repositories that no other run uses."""
    repos = (f"alice/{route}-{mode(push_client)}", f"alice/{route}-{mode(push_client)}-other")
    own = credentials(push_client.hub, *repos)
    ask = push_client.request if route == "proxy" else functools.partial(request, push_client.hub.ports["registry"])

    def ask_with_credentials(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        return ask(method, path, own | dict(headers), body)

    return Conformance(ask_with_credentials, *repos).run()


def test_push_and_delete_have_the_same_answers_as_without_the_proxy(push_client: RegistryClient) -> None:
    expected, found = (recorded_steps(push_client, route) for route in ("direct", "proxy"))
    statuses = {status for _, status, _ in expected}
    assert {200, 201, 202, 204, 400, 404, 416} <= statuses
    for wanted, got in zip(expected, found, strict=True):
        assert got == wanted


@pytest.mark.parametrize("name", LISTENERS)
@pytest.mark.parametrize("how", ["post and put", "post only", "mount"])
def test_pushed_blob_is_served_at_once(push_client: RegistryClient, program: Program, name: str, how: str) -> None:
    """The reader got a 404 for it shortly before."""
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
        assert push_client.request("POST", path, own | EMPTY).status == 201
    elif how == "post only":
        assert push_client.request("POST", f"{uploads}?digest={source}", own, body=data).status == 201
    else:
        location = push_client.request("POST", uploads, own | EMPTY).headers["location"]
        assert push_client.request("PUT", f"{location}?digest={source}", own, body=data).status == 201
    assert reader.blob(source, repo=repo).body == data


@pytest.mark.parametrize("name", LISTENERS)
def test_deleted_blob_is_404_at_once_in_its_repository_alone(
    push_client: RegistryClient, program: Program, name: str
) -> None:
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
    assert program.hub.count() == 0, "the other repository is unchanged"


def test_refused_delete_changes_nothing(program: Program) -> None:
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
