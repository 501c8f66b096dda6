"""The stand-in Hub behaves as Docker Hub does, tested with aiohttp and with skopeo."""

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.required import missing
from support.standin import Hub, Image, Synthetic, random_bytes
from support.standin.content import sha256
from support.standin.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from support.standin_client import BASIC_ALICE, app_fixture, bearer, fetch, pull

app = app_fixture()


def test_ping_without_token_gives_the_bearer_challenge(hub: Hub) -> None:
    answer = fetch(f"{hub.url()}/v2/")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == f'Bearer realm="{hub.realm}",service="registry.docker.io"'
    assert fetch(f"{hub.url()}/v2/", headers=bearer(hub, "")).status == 200


def test_manifest_head_has_digest_length_and_type_and_is_not_counted(hub: Hub, app: Image) -> None:
    hub.limit(7)
    head = pull(hub, "manifests/latest", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["docker-content-digest"] == app.digest
    assert head.headers["content-length"] == str(len(app.manifest))
    assert head.headers["content-type"] == OCI_MANIFEST
    assert head.headers["ratelimit-remaining"] == "7;w=21600"
    assert pull(hub, "manifests/latest").body == app.manifest
    assert hub.remaining == 6


def test_exhausted_limit_answers_429_in_plain_text(hub: Hub, app: Image) -> None:
    hub.limit(0)
    answer = pull(hub, "manifests/latest")
    assert (answer.status, answer.body) == (429, b"Too Many Requests\n")
    assert pull(hub, "manifests/latest", "HEAD").status == 200


def test_image_index_tag_is_the_amd64_manifest_for_a_client_without_index_support(hub: Hub) -> None:
    amd64 = hub.image("library/app", None, [b"a"], docker=True)
    arm64 = hub.image("library/app", None, [b"b"], platform="linux/arm64", docker=True)
    index = hub.index("library/app", "multi", {"linux/amd64": amd64, "linux/arm64": arm64}, docker=True)
    assert pull(hub, "manifests/multi", Accept=DOCKER_LIST).body == index.manifest
    assert pull(hub, "manifests/multi").body == index.manifest
    assert pull(hub, "manifests/multi", Accept=DOCKER_MANIFEST).body == amd64.manifest
    assert pull(hub, f"manifests/{index.digest}", Accept=DOCKER_MANIFEST).body == index.manifest
    assert pull(hub, "manifests/multi", Accept=OCI_INDEX).code == "MANIFEST_UNKNOWN"


def test_blob_is_redirected_to_a_signed_cdn_address(hub: Hub, app: Image) -> None:
    answer = pull(hub, f"blobs/{app.layers[0]}")
    assert answer.status == 307
    location = answer.headers["location"]
    assert location.startswith(f"http://127.0.0.1:{hub.ports['cdn']}/")
    assert fetch(location).body == random_bytes(300_000, 1)
    part = fetch(location, headers={"Range": "bytes=100-199"})
    assert (part.status, part.headers["content-range"]) == (206, "bytes 100-199/300000")
    assert part.body == random_bytes(300_000, 1)[100:200]
    assert fetch(location, headers={"Range": "bytes=-5"}).body == random_bytes(300_000, 1)[-5:]
    assert fetch(location, headers={"Range": "bytes=300000-"}).status == 416
    assert fetch(location, "HEAD").headers["content-length"] == "300000"
    assert fetch(location[:-1] + "_").status == 403


def test_cdn_refuses_and_records_credentials() -> None:
    with Hub() as hub:
        digest = hub.blob("library/app", b"x")
        location = pull(hub, f"blobs/{digest}").headers["location"]
        assert fetch(location, headers={"Authorization": "Bearer x"}).status == 400
        assert hub.violations


def test_anonymous_token_for_a_private_repository_has_no_access(hub: Hub) -> None:
    hub.image("team/app", "latest")
    hub.private("team/app", {"alice": "secret"})
    refused = pull(hub, "manifests/latest", repo="team/app")
    assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
    assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    token = bearer(hub, "repository:team/app:pull", BASIC_ALICE)
    assert fetch(f"{hub.url()}/v2/team/app/manifests/latest", headers=token).status == 200
    wrong = fetch(f"{hub.url('token')}/token", headers={"Authorization": BASIC_ALICE[:-4]})
    assert wrong.status == 401


def test_oauth_password_grant_returns_a_token(hub: Hub) -> None:
    hub.image("team/app", "latest")
    hub.private("team/app", {"alice": "secret"})
    form = {"grant_type": "password", "username": "alice", "password": "secret", "scope": "repository:team/app:pull"}
    token = json.loads(fetch(hub.realm, "POST", data=form).body)["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert fetch(f"{hub.url()}/v2/team/app/manifests/latest", headers=headers).status == 200


def test_expired_and_unknown_tokens_are_invalid(hub: Hub, app: Image) -> None:
    token = bearer(hub, "repository:library/app:pull")
    hub.accounts.revoke()
    for headers in (token, {"Authorization": "Bearer made-up"}):
        answer = fetch(f"{hub.url()}/v2/library/app/manifests/latest", headers=headers)
        assert answer.status == 401
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert [record.token for record in hub.requests(kind="manifest")] == ["expired", "unknown"]


def test_push_in_chunks_and_by_mount_is_stored_and_moves_the_tag(hub: Hub, app: Image) -> None:
    hub.user("alice", "secret")
    token = bearer(hub, "repository:alice/app:pull,push", BASIC_ALICE)
    base = f"{hub.url()}/v2/alice/app"
    started = fetch(f"{base}/blobs/uploads/", "POST", token)
    upload_url = hub.url() + started.headers["location"]
    assert fetch(upload_url, "PATCH", token, b"new ").status == 202
    assert fetch(f"{upload_url}?digest={sha256(b'new layer')}", "PUT", token, b"layer").status == 201
    mounted = fetch(f"{base}/blobs/uploads/?mount={app.config}&from=library/app", "POST", token)
    assert mounted.status == 201
    put = fetch(f"{base}/manifests/v1", "PUT", {**token, "Content-Type": OCI_MANIFEST}, app.manifest)
    assert put.headers["docker-content-digest"] == app.digest
    assert fetch(f"{base}/manifests/v1", headers=token).body == app.manifest
    anonymous = bearer(hub, "repository:alice/app:pull,push")
    assert fetch(f"{base}/blobs/uploads/", "POST", anonymous).status == 401


def test_tags_and_referrers_are_listed(hub: Hub, app: Image) -> None:
    assert json.loads(pull(hub, "tags/list").body) == {"name": "library/app", "tags": ["latest"]}
    assert pull(hub, f"referrers/{app.digest}").status == 404
    signature = hub.image("library/app", None, [b"sig"], subject=app, artifact_type="application/x.sig")
    hub.referrers = True
    listed = json.loads(pull(hub, f"referrers/{app.digest}").body)["manifests"]
    assert [(entry["digest"], entry["artifactType"]) for entry in listed] == [(signature.digest, "application/x.sig")]


def test_synthetic_blob_is_generated_with_its_true_digest(hub: Hub) -> None:
    blob = Synthetic(5_000_001, seed=3)
    digest = hub.blob("library/big", blob)
    location = pull(hub, f"blobs/{digest}", repo="library/big").headers["location"]
    assert sha256(fetch(location).body) == digest
    assert fetch(location, headers={"Range": "bytes=1048570-1048590"}).body == blob.read(1048570, 1048591)


def test_log_counts_requests_and_bytes_by_field(hub: Hub, app: Image) -> None:
    pull(hub, f"blobs/{app.layers[1]}", "HEAD")
    fetch(hub.cdn.sign(f"/blobs/library/app/{app.layers[1]}"))
    assert (hub.count(kind="blob", method="HEAD"), hub.count(kind="token"), hub.count(repo="library/*")) == (1, 1, 2)
    assert hub.sent(kind="cdn") == 5_000
    hub.reset_log()
    assert hub.count() == 0


def test_tls_is_trusted_with_the_ca_file() -> None:
    with Hub(tls=True) as hub:
        context = ssl.create_default_context(cafile=hub.ca_file)
        digest = hub.blob("library/app", b"x")
        assert fetch(f"{hub.url()}/v2/", context=context).status == 401
        assert fetch(hub.cdn.sign(f"/blobs/library/app/{digest}"), context=context).body == b"x"


@pytest.fixture
def skopeo(tmp_path: Path) -> Callable[..., None]:
    if shutil.which("skopeo") is None:
        missing("skopeo is not installed")
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def run(*arguments: str) -> None:
        environment = {**os.environ, "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")}
        command = ["skopeo", "--policy", str(tmp_path / "policy.json"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    return run


def test_skopeo_pulls_an_image_with_the_exact_manifest(
    hub: Hub, app: Image, skopeo: Callable[..., None], tmp_path: Path
) -> None:
    source = f"docker://localhost:{hub.ports['registry']}/library/app:latest"
    skopeo("copy", "--src-tls-verify=false", source, f"dir:{tmp_path}/out")
    assert (tmp_path / "out/manifest.json").read_bytes() == app.manifest
    assert (tmp_path / "out" / app.layers[0].removeprefix("sha256:")).read_bytes() == random_bytes(300_000, 1)


def test_skopeo_pushes_with_a_password(hub: Hub, app: Image, skopeo: Callable[..., None], tmp_path: Path) -> None:
    hub.user("alice", "secret")
    registry, login = f"docker://localhost:{hub.ports['registry']}", "--dest-creds=alice:secret"
    skopeo("copy", "--src-tls-verify=false", f"{registry}/library/app:latest", f"dir:{tmp_path}/out")
    skopeo("copy", "--dest-tls-verify=false", login, f"dir:{tmp_path}/out", f"{registry}/alice/app:v1")
    assert hub.memory.repository("alice/app").tags == {"v1": app.digest}
