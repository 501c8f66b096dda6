"""Logged-in clients get tokens and private images through the real program; other clients do not."""

import base64
import json
import urllib.request
from collections.abc import Iterator

import pytest
from support.http_client import Exchange, head
from support.program import LISTENERS, TOKEN_HOST, Program, RegistryClient, program_fixtures

program, client = program_fixtures(hubcache_tag_ttl="600")

ALICE = "Basic " + base64.b64encode(b"alice:secret").decode()
REALM = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'


@pytest.fixture
def proxy_client(program: Program) -> Iterator[RegistryClient]:
    """A client of the proxy listener, for behaviour that the mirror listener does not have."""
    program.reset()
    yield program.client("proxy")
    program.assert_no_errors()


def login(client: RegistryClient) -> dict[str, str]:
    """Create a user with a private image; return the header that docker sends after `docker login`."""
    client.hub.image(client.repo, "latest", [b"secret layer"])
    client.hub.private(client.repo, {"alice": "secret"})
    return {"Authorization": f"Bearer {client.token(f'repository:{client.repo}:pull', ALICE)}"}


def test_logged_in_client_gets_a_token_of_the_real_service_and_its_private_image(proxy_client: RegistryClient) -> None:
    hub = proxy_client.hub
    headers = login(proxy_client)
    assert [record.user for record in hub.requests(kind="token")] == ["alice"]
    assert proxy_client.manifest("latest", headers).status == 200
    digest = proxy_client.manifest("latest", headers, "HEAD").headers["docker-content-digest"]
    assert proxy_client.manifest(digest, headers).status == 200
    layer = json.loads(proxy_client.manifest(digest, headers).body)["layers"][0]["digest"]
    redirect = proxy_client.blob(layer, headers)
    assert redirect.status == 307
    with urllib.request.urlopen(redirect.headers["location"]) as answer:
        assert answer.read() == b"secret layer"


def test_private_image_is_not_stored(proxy_client: RegistryClient, program: Program) -> None:
    headers = login(proxy_client)
    stored = program.health["store"]["objects"]
    digest = proxy_client.manifest("latest", headers).headers["docker-content-digest"]
    layer = json.loads(proxy_client.manifest(digest, headers).body)["layers"][0]["digest"]
    assert proxy_client.blob(layer, headers).status == 307
    assert program.health["store"]["objects"] == stored
    for name in LISTENERS:
        other_client = program.client(name)
        for answer in (
            other_client.manifest("latest", repo=proxy_client.repo),
            other_client.manifest(digest, repo=proxy_client.repo),
            other_client.blob(layer, repo=proxy_client.repo),
        ):
            assert answer.status == (401 if other_client.is_proxy else 404)


def test_wrong_password_is_refused_by_the_real_service(proxy_client: RegistryClient) -> None:
    wrong = "Basic " + base64.b64encode(b"alice:guess").decode()
    answer = proxy_client.request("GET", "/token?service=registry.docker.io", {"Authorization": wrong}, host=TOKEN_HOST)
    assert answer.status == 401
    assert proxy_client.hub.count(kind="token") == 1


def test_oauth_password_grant_reaches_the_real_service(proxy_client: RegistryClient) -> None:
    login(proxy_client)
    form = f"grant_type=password&username=alice&password=secret&scope=repository:{proxy_client.repo}:pull".encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = proxy_client.request("POST", "/token", headers, host=TOKEN_HOST, body=form)
    token = json.loads(answer.body)["access_token"]
    assert proxy_client.manifest("latest", {"Authorization": f"Bearer {token}"}).status == 200


@pytest.mark.parametrize("headers", [{"Content-Length": "1000000"}, {"Transfer-Encoding": "chunked"}], ids=str)
def test_token_request_that_is_too_large_is_refused(proxy_client: RegistryClient, headers: dict[str, str]) -> None:
    with proxy_client.connect(TOKEN_HOST) as connection:
        connection.sendall(head("POST", "/token", {"Host": TOKEN_HOST} | headers))
        for _ in range(10):
            connection.sendall(
                b"x" * 100_000 if "Content-Length" in headers else b"186a0\r\n" + b"x" * 100_000 + b"\r\n"
            )
        connection.sendall(b"" if "Content-Length" in headers else b"0\r\n\r\n")
        assert Exchange(connection, "POST").finish().failure == (413, "SIZE_INVALID")
    assert proxy_client.hub.count() == 0


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_private_content_is_a_challenge_at_the_proxy_and_not_found_at_the_mirror(
    client: RegistryClient, method: str
) -> None:
    image = client.hub.image(client.repo, "latest")
    client.hub.private(client.repo, {"alice": "secret"})
    for answer in (
        client.manifest("latest", method=method),
        client.manifest(image.digest, method=method),
        client.blob(image.layers[0], method=method),
    ):
        if client.is_proxy:
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == f'{REALM},scope="repository:{client.repo}:pull"'
        else:
            assert answer.status == 404
        if method == "GET":
            assert answer.failure in ((401, "UNAUTHORIZED"), (404, "MANIFEST_UNKNOWN"))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_challenge_names_the_error_of_the_presented_token(proxy_client: RegistryClient, method: str) -> None:
    """dockerd needs it to print "pull access denied … may require 'docker login'" (RFC 6750 section 3)."""
    hub = proxy_client.hub
    image = hub.image(proxy_client.repo, "latest")
    hub.private(proxy_client.repo, {"bob": "secret"})
    hub.user("alice", "secret")
    challenge = f'{REALM},scope="repository:{proxy_client.repo}:pull"'
    scope = f"repository:{proxy_client.repo}:pull"
    tokens = {
        "insufficient_scope": [proxy_client.token(scope), proxy_client.token(scope, ALICE)],
        "invalid_token": ["x"],
    }
    for error, values in tokens.items():
        for value in values:
            headers = {"Authorization": f"Bearer {value}"}
            for answer in (
                proxy_client.manifest("latest", headers, method),
                proxy_client.manifest(image.digest, headers, method),
                proxy_client.blob(image.layers[0], headers, method),
                proxy_client.request(method, f"/v2/{proxy_client.repo}/tags/list", headers),
            ):
                assert answer.status == 401
                assert answer.headers["www-authenticate"] == f'{challenge},error="{error}"', value
    answer = proxy_client.request(method, f"/v2/{proxy_client.repo}/tags/list")
    assert (answer.status, answer.headers["www-authenticate"]) == (401, challenge)


def test_challenge_does_not_name_the_real_address_of_a_mapped_upstream(proxy_client: RegistryClient) -> None:
    """This includes challenges to forwarded requests."""
    hub = proxy_client.hub
    for answer in (
        proxy_client.request("POST", f"/v2/{proxy_client.repo}/blobs/uploads/"),
        proxy_client.request("GET", "/v2/none/manifests/latest"),
    ):
        assert answer.status == 401
        assert hub.realm not in answer.headers["www-authenticate"]
        assert answer.headers["www-authenticate"].startswith(REALM)
