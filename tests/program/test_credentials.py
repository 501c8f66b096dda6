"""No credential stays in logs, metrics, the store, error bodies or saved flows; yet each gets where it is needed."""

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.http_client import TIMEOUT, Answer, Exchange, head
from support.program import TOKEN_HOST, Program, RegistryClient, running_program
from support.standin import Hub, Image, random_bytes
from support.standin.content import sha256
from support.standin.media import OCI_MANIFEST
from support.standin.requestlog import Record
from support.users import basic

SECRET = "alice/secret"
PASSWORD, WRONG, ROBOT = "correct-horse-battery", "incorrect-donkey", "robots-own-password"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PLAIN, ELSEWHERE, COOKIE = "plain-http-password", "token-for-another-registry", "session-in-a-cookie"
PULL = f"scope=repository:{SECRET}:pull"


@dataclass
class Aftermath:
    """What is left when the program has ended: everything written anywhere, by place; and what upstream saw."""

    hub: Hub
    seen: list[Record]
    image: Image
    written: dict[str, bytes] = field(default_factory=dict)
    errors: list[bytes] = field(default_factory=list)

    def assert_nowhere(self, *secrets: str) -> None:
        """No place has any of these, in any of the forms in which they travel."""
        for place, content in self.written.items():
            for secret in secrets:
                assert secret.encode() not in content, f"{secret} is in {place}"

    def places_with(self, text: str) -> set[str]:
        return {place for place, content in self.written.items() if text.encode() in content}


def token_of(answer: Answer) -> dict[str, str]:
    assert answer.status == 200, answer.body
    return {"Authorization": "Bearer " + json.loads(answer.body)["token"]}


def logged_in_pull(client: RegistryClient, image: Image) -> None:
    """`docker login`, then a pull of a public and of a private image."""
    login = "/token?account=alice&client_id=docker&offline_token=true&service=registry.docker.io"
    own = {"Authorization": basic("alice", PASSWORD)}
    assert client.request("GET", "/v2/", token_of(client.request("GET", login, own, host=TOKEN_HOST))).status == 200
    for repo in ("library/app", SECRET):
        path = f"/token?account=alice&service=registry.docker.io&scope=repository:{repo}:pull"
        token = token_of(client.request("GET", path, own, host=TOKEN_HOST))
        for method in ("HEAD", "GET"):
            assert client.manifest("1", token, method, repo).status == 200
        assert client.manifest(image.digest, token, repo=repo).status == 200
        for blob in (image.config, *image.layers):
            assert client.blob(blob, token, repo=repo).status in (200, 307)


def oauth(client: RegistryClient) -> dict[str, str]:
    """A token by POST, as podman and newer docker get it."""
    body = f"grant_type=password&username=alice&password={PASSWORD}&service=registry.docker.io&{PULL},push".encode()
    token = token_of(client.request("POST", "/token", FORM, host=TOKEN_HOST, body=body))
    assert client.manifest("1", token, repo=SECRET).status == 200
    return token


def push(client: RegistryClient, token: dict[str, str]) -> None:
    """A blob and a manifest, with a token that may push."""
    data = b"pushed"
    begun = client.request("POST", f"/v2/{SECRET}/blobs/uploads/", token)
    assert begun.status == 202
    path = f"{begun.headers['location']}?digest={sha256(data)}"
    assert client.request("PUT", path, token, body=data).status == 201
    layer = {"mediaType": "application/octet-stream", "digest": sha256(data), "size": len(data)}
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer]}).encode()
    headers = token | {"Content-Type": OCI_MANIFEST}
    assert client.request("PUT", f"/v2/{SECRET}/manifests/pushed", headers, body=body).status == 201


def refusals(client: RegistryClient, mirror: RegistryClient) -> Iterator[Answer]:
    """What is answered with an error, each time to a client that came with credentials."""
    wrong = {"Authorization": basic("alice", WRONG)}
    yield client.request("GET", f"/token?service=registry.docker.io&{PULL}", wrong, host=TOKEN_HOST)
    form = f"grant_type=password&username=alice&password={WRONG}&{PULL}".encode()
    yield client.request("POST", "/token", FORM, host=TOKEN_HOST, body=form)
    for one in (client, mirror):
        yield one.manifest("1", {"Authorization": f"Bearer {WRONG}"}, repo=SECRET)
        yield one.manifest("none", {"Authorization": f"Bearer {WRONG}"}, repo="library/app")
        yield one.request("GET", f"/v2/{SECRET}/manifests/..%2f", {"Authorization": f"Bearer {WRONG}"})
    client.hub.stop()
    yield client.manifest("other", {"Authorization": f"Bearer {WRONG}"}, repo=SECRET)
    yield client.request("GET", "/token?service=registry.docker.io", wrong, host=TOKEN_HOST)
    yield client.request("PUT", f"/v2/{SECRET}/manifests/1", {"Authorization": f"Bearer {WRONG}"}, body=b"{}")


def plain_http(client: RegistryClient) -> None:
    """A registry without TLS, reached through the proxy: not ours, but recorded like everything."""
    with socket.create_connection(("127.0.0.1", client.program.proxy), TIMEOUT) as connection:
        fields = {"Host": "x", "Authorization": basic("alice", PLAIN), "Connection": "close"}
        connection.sendall(head("GET", f"{client.hub.url('token')}/token", fields))
        assert Exchange(connection, "GET").finish().status == 401


def act(program: Program) -> Aftermath:
    """Everything that credentials are for."""
    client, mirror = program.client("proxy"), program.client("mirror")
    image = program.hub.image(SECRET, "1", [random_bytes(1000)])
    program.hub.image("library/app", "1", [random_bytes(1000)])
    program.hub.private(SECRET, {"alice": PASSWORD})
    logged_in_pull(client, image)
    push(client, oauth(client))
    program.hub.image("library/other", "1", [b"another"])
    assert mirror.manifest("1", repo="library/other").status == 200
    assert mirror.manifest("1?ns=ghcr.io", {"Authorization": f"Bearer {ELSEWHERE}"}).status == 404
    assert client.manifest("1", {"Cookie": COOKIE}, repo="library/app").status == 200
    plain_http(client)
    found = Aftermath(program.hub, list(program.hub.log), image)
    found.errors = [answer.body for answer in refusals(client, mirror)]
    return found


@pytest.fixture(scope="module", params=["bypass", "authorize"])
def aftermath(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    """All is logged that can be, and all flows are saved twice."""
    saved = tmp_path_factory.mktemp("saved")
    (saved / "password").write_text(ROBOT + "\n")
    options = {
        "hubcache_private": request.param,
        "hubcache_tunnel": ["*", "localhost"],
        "hubcache_username": "robot",
        "hubcache_password_file": str(saved / "password"),
        "save_stream_file": str(saved / "flows"),
        "hardump": str(saved / "flows.har"),
        "flow_detail": "4",
        "termlog_verbosity": "debug",
    }
    with Hub() as hub, running_program(hub, **options) as program:
        hub.user("robot", ROBOT)
        found = act(program)
        pages = {page: program.status_page(page) for page in ("/metrics", "/healthz")}
        program.stop()
        store = {str(path): path.read_bytes() for path in program.store.rglob("*") if path.is_file()}
        found.written = {
            "the log": program.log_file.read_bytes(),
            "saved flows": (saved / "flows").read_bytes(),
            "the HAR file": (saved / "flows.har").read_bytes(),
            "error bodies": b"\n".join(found.errors),
            **pages,
            **store,
        }
        yield found


RECORDED = {"saved flows", "the HAR file"}


def test_everything_was_recorded_that_could_betray_something(aftermath: Aftermath) -> None:
    """Else the tests below would find nothing because there is nothing."""
    for path in (f"/v2/{SECRET}/manifests/1", f"/v2/{SECRET}/manifests/pushed", "ns=ghcr.io"):
        assert aftermath.places_with(path) >= RECORDED
    assert aftermath.places_with("[hidden by hubcache]") >= RECORDED
    assert len([error for error in aftermath.errors if b'"errors"' in error]) >= 6
    assert "the log" in aftermath.places_with(TOKEN_HOST)
    assert any(place.endswith("cache.db") for place in aftermath.written)


def test_no_password_stays_anywhere(aftermath: Aftermath) -> None:
    aftermath.assert_nowhere(PASSWORD, WRONG, ROBOT)


def test_no_basic_credentials_stay_anywhere(aftermath: Aftermath) -> None:
    pairs = (("alice", PASSWORD), ("alice", WRONG), ("robot", ROBOT))
    aftermath.assert_nowhere(*(basic(*pair).removeprefix("Basic ") for pair in pairs))


@pytest.mark.parametrize("user", ["alice", "robot", ""], ids=["alice", "robot", "anonymous"])
def test_no_token_stays_anywhere(aftermath: Aftermath, user: str) -> None:
    tokens = [token.value for token in aftermath.hub.accounts.tokens.values() if token.user == user]
    assert tokens
    aftermath.assert_nowhere(*tokens)


def test_no_credentials_stay_of_a_request_to_a_mirror_for_an_unknown_namespace(aftermath: Aftermath) -> None:
    aftermath.assert_nowhere(ELSEWHERE)


def test_no_cookie_stays_anywhere(aftermath: Aftermath) -> None:
    aftermath.assert_nowhere(COOKIE)


def test_no_credentials_stay_of_a_plain_http_request_that_only_passes_through(aftermath: Aftermath) -> None:
    aftermath.assert_nowhere(basic("alice", PLAIN).removeprefix("Basic "))


def test_no_signed_address_of_a_private_blob_stays_anywhere(aftermath: Aftermath) -> None:
    """Whoever has it can read the blob for as long as the signature is good."""
    aftermath.assert_nowhere("X-Signature=")


def alices(kind: str, method: str) -> Callable[[Record], bool]:
    return lambda record: record.matches(kind=kind, method=method, user="alice")


@pytest.mark.parametrize(
    ("kind", "method"),
    [("token", "GET"), ("token", "POST"), ("manifest", "HEAD"), ("upload", "POST"), ("upload", "PUT"),
     ("manifest", "PUT")],
)  # fmt: skip
def test_credentials_did_reach_the_upstream(aftermath: Aftermath, kind: str, method: str) -> None:
    reached = list(filter(alices(kind, method), aftermath.seen))
    assert reached
    assert all(record.status < 300 for record in reached)


def test_account_did_reach_the_upstream(aftermath: Aftermath) -> None:
    assert [record.repo for record in aftermath.seen if record.matches(kind="manifest", user="robot", status=200)]


def test_password_reached_the_token_service_only(aftermath: Aftermath) -> None:
    with_basic = {r.kind for r in aftermath.seen if (r.authorization or "").startswith("Basic ")}
    assert with_basic == {"token"}
    assert aftermath.hub.violations == []


def test_password_file_that_is_gone_is_told_at_start_by_the_options_name(tmp_path: Path) -> None:
    options = {"hubcache_username": "robot", "hubcache_password_file": str(tmp_path / "gone")}
    with Hub() as hub:
        program = Program(tmp_path, hub, options)
        program.launch()
        assert program.wait_for_exit() != 0
    assert "hubcache_password_file" in program.log
