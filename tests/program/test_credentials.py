"""Credentials reach the upstream, but not logs, metrics, the store, error bodies or saved flows."""

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
FOR_PROXY = "password-for-a-proxy"
PULL = f"scope=repository:{SECRET}:pull"


@dataclass
class Traces:
    """Everything that the program wrote, by output, and the requests that the upstream received."""

    hub: Hub
    received: list[Record]
    image: Image
    written: dict[str, bytes] = field(default_factory=dict)
    errors: list[bytes] = field(default_factory=list)

    def assert_absent(self, *secrets: str) -> None:
        """Assert that no output contains any of these."""
        for output, content in self.written.items():
            for secret in secrets:
                assert secret.encode() not in content, f"{secret} is in {output}"

    def outputs_with(self, text: str) -> set[str]:
        """Return the outputs that contain the text."""
        return {output for output, content in self.written.items() if text.encode() in content}


def token_of(answer: Answer) -> dict[str, str]:
    assert answer.status == 200, answer.body
    return {"Authorization": "Bearer " + json.loads(answer.body)["token"]}


def logged_in_pull(client: RegistryClient, image: Image) -> None:
    """Log in as docker does, then pull a public and a private image."""
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
    """Get a token by POST, as podman and newer docker do."""
    body = f"grant_type=password&username=alice&password={PASSWORD}&service=registry.docker.io&{PULL},push".encode()
    token = token_of(client.request("POST", "/token", FORM, host=TOKEN_HOST, body=body))
    assert client.manifest("1", token, repo=SECRET).status == 200
    return token


def push(client: RegistryClient, token: dict[str, str]) -> None:
    """Push a blob and a manifest, with a token that permits it."""
    data = b"pushed"
    upload = client.request("POST", f"/v2/{SECRET}/blobs/uploads/", token)
    assert upload.status == 202
    path = f"{upload.headers['location']}?digest={sha256(data)}"
    assert client.request("PUT", path, token, body=data).status == 201
    layer = {"mediaType": "application/octet-stream", "digest": sha256(data), "size": len(data)}
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer]}).encode()
    headers = token | {"Content-Type": OCI_MANIFEST}
    assert client.request("PUT", f"/v2/{SECRET}/manifests/pushed", headers, body=body).status == 201


def refusals(client: RegistryClient, mirror: RegistryClient) -> Iterator[Answer]:
    """Yield error answers, each to a request with credentials."""
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
    """Send a plain HTTP request through the proxy to a host that is not cached; mitmproxy records it as well."""
    with socket.create_connection(("127.0.0.1", client.program.proxy), TIMEOUT) as connection:
        fields = {"Host": "x", "Authorization": basic("alice", PLAIN), "Connection": "close"}
        fields["Proxy-Authorization"] = basic("alice", FOR_PROXY)
        connection.sendall(head("GET", f"{client.hub.url('token')}/token", fields))
        assert Exchange(connection, "GET").finish().status == 401


def act(program: Program) -> Traces:
    """Send requests of every type that carry credentials."""
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
    traces = Traces(program.hub, list(program.hub.log), image)
    traces.errors = [answer.body for answer in refusals(client, mirror)]
    return traces


@pytest.fixture(scope="module", params=["bypass", "authorize"])
def traces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    """The traces of a program that logs at the highest level and saves all flows in two formats."""
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
        result = act(program)
        pages = {page: program.status_page(page) for page in ("/metrics", "/healthz")}
        program.stop()
        store = {str(path): path.read_bytes() for path in program.store.rglob("*") if path.is_file()}
        result.written = {
            "the log": program.log_file.read_bytes(),
            "saved flows": (saved / "flows").read_bytes(),
            "the HAR file": (saved / "flows.har").read_bytes(),
            "error bodies": b"\n".join(result.errors),
            **pages,
            **store,
        }
        yield result


RECORDED = {"saved flows", "the HAR file"}


def test_requests_with_credentials_were_recorded(traces: Traces) -> None:
    """Otherwise the tests below would pass because nothing was recorded."""
    for path in (f"/v2/{SECRET}/manifests/1", f"/v2/{SECRET}/manifests/pushed", "ns=ghcr.io"):
        assert traces.outputs_with(path) >= RECORDED
    assert traces.outputs_with("[hidden by hubcache]") >= RECORDED
    assert len([error for error in traces.errors if b'"errors"' in error]) >= 6
    assert "the log" in traces.outputs_with(TOKEN_HOST)
    assert any(output.endswith("cache.db") for output in traces.written)


def test_no_password_is_written(traces: Traces) -> None:
    traces.assert_absent(PASSWORD, WRONG, ROBOT)


def test_no_basic_credentials_are_written(traces: Traces) -> None:
    pairs = (("alice", PASSWORD), ("alice", WRONG), ("robot", ROBOT))
    traces.assert_absent(*(basic(*pair).removeprefix("Basic ") for pair in pairs))


@pytest.mark.parametrize("user", ["alice", "robot", ""], ids=["alice", "robot", "anonymous"])
def test_no_token_is_written(traces: Traces, user: str) -> None:
    tokens = [token.value for token in traces.hub.accounts.tokens.values() if token.user == user]
    assert tokens
    traces.assert_absent(*tokens)


def test_no_credentials_of_a_mirror_request_for_an_unknown_namespace_are_written(traces: Traces) -> None:
    traces.assert_absent(ELSEWHERE)


def test_no_cookie_is_written(traces: Traces) -> None:
    traces.assert_absent(COOKIE)


def test_no_credentials_of_a_forwarded_plain_http_request_are_written(traces: Traces) -> None:
    traces.assert_absent(*(basic("alice", password).removeprefix("Basic ") for password in (PLAIN, FOR_PROXY)))


def test_credentials_for_the_proxy_are_not_sent_to_servers(traces: Traces) -> None:
    assert not any("proxy-authorization" in map(str.lower, record.headers) for record in traces.received)


def test_no_signed_url_of_a_private_blob_is_written(traces: Traces) -> None:
    """Such a URL grants access to the blob until the signature expires."""
    traces.assert_absent("X-Signature=")


def is_from_alice(kind: str, method: str) -> Callable[[Record], bool]:
    return lambda record: record.matches(kind=kind, method=method, user="alice")


@pytest.mark.parametrize(
    ("kind", "method"),
    [("token", "GET"), ("token", "POST"), ("manifest", "HEAD"), ("upload", "POST"), ("upload", "PUT"),
     ("manifest", "PUT")],
)  # fmt: skip
def test_credentials_reach_the_upstream(traces: Traces, kind: str, method: str) -> None:
    received = list(filter(is_from_alice(kind, method), traces.received))
    assert received
    assert all(record.status < 300 for record in received)


def test_account_reaches_the_upstream(traces: Traces) -> None:
    assert [record.repo for record in traces.received if record.matches(kind="manifest", user="robot", status=200)]


def test_password_reaches_the_token_service_only(traces: Traces) -> None:
    with_basic = {r.kind for r in traces.received if (r.authorization or "").startswith("Basic ")}
    assert with_basic == {"token"}
    assert traces.hub.violations == []


def test_missing_password_file_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    options = {"hubcache_username": "robot", "hubcache_password_file": str(tmp_path / "missing")}
    with Hub() as hub:
        program = Program(tmp_path, hub, options)
        program.launch()
        assert program.wait_for_exit() != 0
    assert "hubcache_password_file" in program.log
