"""Images go from one cache to another in OCI image layouts, without a network between them."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hubcache.cli.errors import REFUSED, USAGE
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Listener
from support.cli import run
from support.control import call
from support.engine import Cache, running
from support.engine29 import attested
from support.layouts import CONTAINERD, LayoutFiles, digest_of
from support.required import require
from support.standin import Hub, Image, random_bytes
from support.stores import MIB
from support.users import EACH_LISTENER, SECRET, bearer, pull, settled, until

LAYER = 300_000


@pytest.fixture
async def offline(hub: Hub, tmp_path: Path) -> AsyncIterator[Cache]:
    """Another cache, which never had a network."""
    async with running(hub, tmp_path / "other", offline=True, max_stale=float("inf"), tag_ttl=0.0) as started:
        yield started


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image("library/app", "1", [random_bytes(LAYER, "a"), b"small"])


async def command(cache: Cache, *arguments: str) -> Result:
    """Run a command of the command line for this cache."""
    result: Result = await asyncio.to_thread(run, *arguments, HUBCACHE_DIR=str(cache.settings.directory))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


async def succeeds(cache: Cache, *arguments: str) -> str:
    result = await command(cache, *arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


# -- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["out.tar", "out"])
@EACH_LISTENER
async def test_exported_image_is_pulled_from_a_cache_without_a_network(
    cache: Cache, offline: Cache, hub: Hub, image: Image, form: str, listener: Listener, tmp_path: Path
) -> None:
    await pull(cache, image)
    assert "docker.io/library/app:1" in await succeeds(cache, "export", "app:1", "-o", str(tmp_path / form))
    hub.reset_log()
    assert "app:1: imported" in await succeeds(offline, "import", str(tmp_path / form))
    assert set(await pull(offline, image, listener)) == {200}
    assert hub.count() == 0
    usage = offline.engine.store.usage
    assert {usage.held[Digest(each)] for each in (*image.blobs, image.digest)} == {1}, "held until the import has ended"


async def test_imported_image_is_served_after_a_restart(cache: Cache, hub: Hub, image: Image, tmp_path: Path) -> None:
    await pull(cache, image)
    await succeeds(cache, "export", "app:1", "-o", str(tmp_path / "out.tar"))
    hub.stop()
    for _ in range(2):
        async with running(hub, tmp_path / "other", offline=True, max_stale=float("inf")) as other:
            if not other.engine.store.has(Digest(image.digest)):
                await succeeds(other, "import", str(tmp_path / "out.tar"))
            assert set(await pull(other, image, Listener.MIRROR)) == {200}


async def test_tag_counts_as_validated_at_the_import(cache: Cache, hub: Hub, image: Image, tmp_path: Path) -> None:
    """A cache with a network serves it without a request for the lifetime of tags, and asks its registry after that."""
    await pull(cache, image)
    await succeeds(cache, "export", "app:1", "-o", str(tmp_path / "out.tar"))
    async with running(hub, tmp_path / "other", tag_ttl=600.0) as other:
        await succeeds(other, "import", str(tmp_path / "out.tar"))
        hub.reset_log()
        assert set(await pull(other, image, Listener.MIRROR)) == {200}
        assert hub.count() == 0
        moved = hub.image("library/app", "1", [b"moved"])
        other.apply(tag_ttl=0.0)
        assert (await other.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[1] == moved.manifest


async def test_referrers_and_attestations_are_exported_and_imported(
    cache: Cache, offline: Cache, hub: Hub, image: Image, tmp_path: Path
) -> None:
    hub.referrers = True
    sbom = hub.image("library/app", None, [b"sbom"], subject=image, artifact_type="application/spdx+json")
    scan = hub.image("library/app", None, [b"scan"], subject=image, artifact_type="application/sarif+json")
    cosign = f"{image.digest.replace(':', '-')}.sig"
    signature = hub.image("library/app", cosign, [b"signature"])
    index = attested(hub)
    name = f"{index.repo}:{index.tag}"
    await succeeds(cache, "warm", "app:1", name, "--platform", "linux/amd64")
    await succeeds(cache, "export", "app:1", name, "-o", str(tmp_path / "out.tar"))
    await succeeds(offline, "import", str(tmp_path / "out.tar"))
    status, body = await offline.get(Listener.PROXY, f"/v2/library/app/referrers/{image.digest}")
    types = {each["digest"]: each["artifactType"] for each in json.loads(body)["manifests"]}
    assert (status, types) == (200, {sbom.digest: "application/spdx+json", scan.digest: "application/sarif+json"})
    for referrer in (sbom, scan):
        assert set(await pull(offline, referrer)) == {200}
        children = offline.engine.store.usage.children.values()
        assert sum(referrer.digest in below for below in children) == 1, "one list of referrers is stored"
    assert (await offline.get(Listener.PROXY, f"/v2/library/app/manifests/{cosign}"))[1] == signature.manifest
    attestation = index.attestations["linux/amd64"]
    assert (await offline.get(Listener.PROXY, f"/v2/{index.repo}/manifests/{attestation.digest}"))[0] == 200


async def test_only_wanted_and_complete_platforms_are_exported(cache: Cache, hub: Hub, tmp_path: Path) -> None:
    images = {
        name: hub.image("library/multi", None, [name.encode()], platform=name)
        for name in ("linux/amd64", "linux/arm64", "linux/386")
    }
    hub.index("library/multi", "1", images)
    await succeeds(cache, "warm", "multi:1", "--platform", "linux/amd64", "--platform", "linux/arm64")
    exported = json.loads(await succeeds(cache, "export", "multi:1", "-o", str(tmp_path / "all"), "--json"))
    assert exported["images"][0]["platforms"] == ["linux/amd64", "linux/arm64"]
    await succeeds(cache, "export", "multi:1", "-o", str(tmp_path / "one"), "--platform", "linux/arm64")
    assert not (tmp_path / "one/blobs/sha256" / images["linux/amd64"].digest.partition(":")[2]).exists()
    assert (tmp_path / "one/blobs/sha256" / images["linux/arm64"].digest.partition(":")[2]).exists()
    result = await command(cache, "export", "multi:1", "-o", str(tmp_path / "none"), "--platform", "linux/386")
    assert result.exit_code == REFUSED
    assert "fetch it with hubcache warm" in result.stderr
    assert not (tmp_path / "none").exists()


async def test_archive_for_docker_has_images_and_no_artifacts(
    cache: Cache, hub: Hub, image: Image, tmp_path: Path
) -> None:
    chart = hub.image("library/chart", "1", [b"chart"], config_type="application/vnd.cncf.helm.config.v1+json")
    await pull(cache, image)
    await pull(cache, chart)
    await succeeds(cache, "export", "app:1", "chart:1", "-o", str(tmp_path / "out"))
    (described,) = json.loads((tmp_path / "out/manifest.json").read_text())
    assert described["RepoTags"] == ["app:1"]
    assert [described["Config"], *described["Layers"]] == [
        each.replace("sha256:", "blobs/sha256/") for each in image.blobs
    ]


async def test_image_of_a_digest_is_exported_and_imported(
    cache: Cache, offline: Cache, image: Image, tmp_path: Path
) -> None:
    await pull(cache, image)
    await succeeds(cache, "export", f"app@{image.digest}", "-o", str(tmp_path / "out"))
    await succeeds(offline, "import", str(tmp_path / "out"))
    assert (await offline.get(Listener.MIRROR, f"/v2/library/app/manifests/{image.digest}"))[1] == image.manifest
    assert (await offline.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[0] == 503


async def test_second_import_sends_nothing(cache: Cache, image: Image, tmp_path: Path) -> None:
    await pull(cache, image)
    await succeeds(cache, "export", "app:1", "-o", str(tmp_path / "out"))
    result = json.loads(await succeeds(cache, "import", str(tmp_path / "out"), "--json"))
    assert result["layouts"][0]["sent"] == 0


# -- other programs --------------------------------------------------------------------------------------------------


async def skopeo(*arguments: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run, ["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_skopeo_reads_an_export_and_its_layouts_are_imported(
    cache: Cache, offline: Cache, image: Image, tmp_path: Path
) -> None:
    require("skopeo")
    await pull(cache, image)
    await succeeds(cache, "export", "app:1", "-o", str(tmp_path / "out"))
    await succeeds(cache, "export", "app:1", "-o", str(tmp_path / "out.tar"))
    for source in (f"oci:{tmp_path}/out", f"oci-archive:{tmp_path}/out.tar"):
        await skopeo("copy", "--preserve-digests", f"{source}:docker.io/library/app:1", f"dir:{tmp_path}/copy")
        assert (tmp_path / "copy/manifest.json").read_bytes() == image.manifest
    await skopeo("copy", "--preserve-digests", f"dir:{tmp_path}/copy", f"oci:{tmp_path}/theirs:2")
    assert "name it with --as IMAGE" in (await command(offline, "import", str(tmp_path / "theirs"))).stderr
    await succeeds(offline, "import", str(tmp_path / "theirs"), "--as", "app:2")
    assert (await offline.get(Listener.MIRROR, "/v2/library/app/manifests/2"))[1] == image.manifest


async def test_layout_as_buildx_writes_it_is_imported(offline: Cache, tmp_path: Path) -> None:
    """It has folders, an index of one platform with its attestations, and the annotations of containerd."""
    files = LayoutFiles()
    manifest = files.manifest(b"layer")
    attestation = files.manifest(b"provenance") | {
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": manifest["digest"],
        },
        "platform": {"architecture": "unknown", "os": "unknown"},
    }
    index = files.index(manifest | {"platform": {"architecture": "amd64", "os": "linux"}}, attestation)
    files.entry(index, "docker.io/library/built:latest", CONTAINERD)
    await succeeds(offline, "import", str(files.write(tmp_path / "built.tar")))
    assert (await offline.get(Listener.PROXY, "/v2/library/built/manifests/latest"))[0] == 200
    assert (await offline.get(Listener.PROXY, f"/v2/library/built/blobs/{digest_of(b'provenance')}")) == (
        200,
        b"provenance",
    )


# -- refused ---------------------------------------------------------------------------------------------------------


def stored(cache: Cache) -> set[Digest]:
    return set(cache.engine.store.usage.sizes)


async def refused(cache: Cache, *arguments: str) -> str:
    """Run a command that is refused; return its message, which is one line."""
    result = await command(cache, *arguments)
    assert result.exit_code in (1, REFUSED), result.output
    (line,) = result.stderr.strip().splitlines()
    assert result.stdout == ""
    return line


async def test_private_image_is_not_exported(hub: Hub, tmp_path: Path) -> None:
    secret = hub.image("alice/secret", "1", [b"secret"])
    hub.private("alice/secret", {"alice": "alice's"})
    async with running(hub, tmp_path / "store", authorize=True) as cache:
        await pull(cache, secret, authorization=bearer(hub, "alice", "alice/secret"))
        assert cache.engine.store.has(Digest(secret.digest))
        assert "is private" in await refused(cache, "export", "alice/secret:1", "-o", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


async def test_incomplete_image_is_not_exported(cache: Cache, image: Image, tmp_path: Path) -> None:
    await cache.get(Listener.PROXY, "/v2/library/app/manifests/1")
    message = await refused(cache, "export", "app:1", "-o", str(tmp_path / "out"))
    assert "app:1 is not completely stored: 3 of its parts are missing" in message
    assert "app:2 is not stored" in await refused(cache, "export", "app:2", "-o", str(tmp_path / "out"))


async def test_damaged_blob_is_not_exported(cache: Cache, image: Image, tmp_path: Path) -> None:
    await pull(cache, image)
    await settled(cache)
    path = cache.engine.store.blob_path(Digest(image.layers[0]))
    assert path is not None
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\0damage")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert "is not stored" in await refused(cache, "export", "app:1", "-o", str(tmp_path / "out.tar"))
    assert not (tmp_path / "out.tar").exists()
    assert not cache.engine.store.has(Digest(image.layers[0])), "it is in the quarantine"


async def test_layout_with_a_wrong_blob_records_nothing(offline: Cache, tmp_path: Path) -> None:
    files = LayoutFiles()
    files.entry(files.manifest(b"right", b"other"))
    files.files[f"blobs/sha256/{digest_of(b'right').partition(':')[2]}"] = b"wrong"
    message = await refused(offline, "import", str(files.write(tmp_path / "a.tar")))
    assert f"the content does not match its digest {digest_of(b'right')}" in message
    assert (await offline.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[0] == 503
    assert Digest(digest_of(b"right")) not in stored(offline)


async def test_malformed_layout_stores_nothing(offline: Cache, tmp_path: Path) -> None:
    files = LayoutFiles()
    files.entry(files.manifest(b"layer"))
    files.entry(files.manifest(b"other"), "Not A Name/x")
    assert "is not the name of an image" in await refused(offline, "import", str(files.write(tmp_path / "a.tar")))
    assert not stored(offline)


async def test_image_of_a_registry_that_is_not_served_is_refused(offline: Cache, tmp_path: Path) -> None:
    files = LayoutFiles()
    files.entry(files.manifest(b"layer"), "ghcr.io/owner/name:1")
    message = await refused(offline, "import", str(files.write(tmp_path / "a.tar")))
    assert message == "hubcache: this cache does not serve ghcr.io; add it to hubcache_registries"


async def test_import_into_a_repository_with_private_content_is_refused(
    cache_with_secret: Cache, hub: Hub, secret: Image, tmp_path: Path
) -> None:
    """It would make the private content of the same repository public."""
    files = LayoutFiles()
    files.entry(files.manifest(b"layer"), f"{SECRET}:2")
    path = str(files.write(tmp_path / "a.tar"))
    message = await refused(cache_with_secret, "import", path)
    assert f"the store has private content of {SECRET}, which everybody could read" in message
    for reference in ("1", "2", secret.digest):
        status, _ = await cache_with_secret.get(Listener.PROXY, f"/v2/{SECRET}/manifests/{reference}")
        assert status == 401
    await succeeds(cache_with_secret, "purge", f"{SECRET}:1")
    await succeeds(cache_with_secret, "import", path)
    cache_with_secret.apply(tag_ttl=600.0)
    assert (await cache_with_secret.get(Listener.PROXY, f"/v2/{SECRET}/manifests/2"))[0] == 200


async def test_private_image_itself_can_be_imported(
    cache_with_secret: Cache, hub: Hub, secret: Image, tmp_path: Path
) -> None:
    """The operator has its bytes, and vouches for them."""
    files, own = LayoutFiles(), bearer(hub, "alice", SECRET)
    files.blob(secret.manifest)
    for digest in secret.blobs:
        path = f"/v2/{SECRET}/blobs/{digest}"
        files.blob((await cache_with_secret.get(Listener.PROXY, path, authorization=own))[1])
    manifest = {"mediaType": secret.media_type, "digest": secret.digest, "size": len(secret.manifest)}
    files.entry(manifest, f"{SECRET}:1")
    await succeeds(cache_with_secret, "import", str(files.write(tmp_path / "a.tar")))
    cache_with_secret.apply(tag_ttl=600.0)
    assert (await cache_with_secret.get(Listener.PROXY, f"/v2/{SECRET}/manifests/1"))[1] == secret.manifest


@pytest.mark.parametrize("names", [("app:1", "app:2"), (None, None)])
async def test_name_for_a_layout_of_several_images_is_refused(
    offline: Cache, names: tuple[str | None, ...], tmp_path: Path
) -> None:
    files = LayoutFiles()
    for number, name in enumerate(names):
        files.entry(files.manifest(bytes([number])), name)
    path = str(files.write(tmp_path / "a.tar"))
    assert "--as cannot name them" in await refused(offline, "import", path, "--as", "app:3")


async def test_wrong_usage(offline: Cache, tmp_path: Path) -> None:
    for arguments, message in (
        (("import", "a", "b", "--as", "app:1"), "one layout only"),
        (("import", "a", "--as", "Not A Name"), "is not the name of an image"),
        (("export", "app:1", "-o", "-", "--json"), "exclude each other"),
    ):
        result = await command(offline, *arguments)
        assert (result.exit_code, message in result.stderr) == (USAGE, True), result.stderr


# -- a full store ----------------------------------------------------------------------------------------------------


async def test_import_that_does_not_fit_removes_nothing(hub: Hub, tmp_path: Path) -> None:
    popular = hub.image("library/popular", "1", [random_bytes(2 * MIB, "p")])
    files = LayoutFiles()
    files.entry(files.manifest(*(random_bytes(3 * MIB, str(n)) for n in range(3))))
    async with running(hub, tmp_path / "store", size=8 * MIB) as small:
        await pull(small, popular)
        before = stored(small)
        assert "the content needs" in await refused(small, "import", str(files.write(tmp_path / "a.tar")))
        assert stored(small) == before
        assert not small.engine.store.usage.held


async def test_import_makes_space_in_a_full_store(hub: Hub, tmp_path: Path) -> None:
    popular = hub.image("library/popular", "1", [random_bytes(4 * MIB, "p")])
    files = LayoutFiles()
    files.entry(files.manifest(random_bytes(3 * MIB, "a"), random_bytes(2 * MIB, "b")))
    async with running(hub, tmp_path / "store", size=8 * MIB) as small:
        await pull(small, popular)
        for _ in range(20):
            small.engine.store.popularity.count_request(Digest(popular.layers[0]))
        await succeeds(small, "import", str(files.write(tmp_path / "a.tar")))
        assert (await small.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[0] == 200
        assert not small.engine.store.has(Digest(popular.layers[0]))


# -- the socket ------------------------------------------------------------------------------------------------------


async def ask(cache: Cache, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    return await call(cache.settings.directory, method, path, body)


async def test_tag_is_recorded_only_when_all_content_is_stored(offline: Cache) -> None:
    files = LayoutFiles()
    manifest = files.manifest(b"layer")
    body = {"image": "app:1", "digest": manifest["digest"], "media_type": manifest["mediaType"]}
    assert (await ask(offline, "POST", "/v1/tag", body))[0] == 409
    await offline.engine.control.commands.content.put_manifest(
        Digest(manifest["digest"]), "", files.files[f"blobs/sha256/{manifest['digest'].partition(':')[2]}"]
    )
    status, answer = await ask(offline, "POST", "/v1/tag", body)
    assert status == 409
    assert "2 of its parts are not stored" in answer["error"]
    assert (await offline.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[0] == 503


async def test_name_with_another_digest_records_nothing(offline: Cache, tmp_path: Path) -> None:
    files = LayoutFiles()
    manifest = files.manifest(b"layer")
    files.entry(manifest, "app:1")
    await succeeds(offline, "import", str(files.write(tmp_path / "a.tar")))
    name = f"other@{digest_of(b'layer')}"
    body = {"image": name, "digest": manifest["digest"], "media_type": manifest["mediaType"]}
    status, answer = await ask(offline, "POST", "/v1/tag", body)
    assert (status, "cannot be an image with the digest" in answer["error"]) == (400, True)
    assert (await offline.get(Listener.MIRROR, f"/v2/library/other/manifests/{manifest['digest']}"))[0] == 503


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/content/sha256:none", None, 400),
        ("GET", f"/v1/content/{digest_of(b'none')}", None, 404),
        ("PUT", f"/v1/content/{digest_of(b'none')}", {}, 400),
        ("PUT", f"/v1/content/{digest_of(b'none')}?media_type=x/y", {}, 400),
        ("PUT", f"/v1/content/{digest_of(b'[]')}?media_type=x/y", [], 400),
        ("PUT", f"/v1/content/{digest_of(b'{}')}?media_type=x/y%0d%0aSet-Cookie:z", {}, 400),
        ("POST", "/v1/content", {"contents": {"sha256:x": 1}}, 400),
        ("POST", "/v1/content", {"contents": {digest_of(b""): -1}}, 400),
        ("POST", "/v1/content", {"contents": []}, 400),
        ("GET", "/v1/export?name=In%20Valid", None, 400),
        ("GET", "/v1/export?name=none", None, 404),
        ("GET", "/v1/export?name=none&platforms=x", None, 400),
        ("POST", "/v1/tag", {"image": "app:1", "digest": "x", "media_type": "y"}, 400),
        ("POST", "/v1/tag", {"image": "app:1", "digest": digest_of(b""), "media_type": ""}, 400),
        ("POST", "/v1/tag", {"image": "app:1", "digest": digest_of(b""), "media_type": "x/y\r\nz"}, 400),
        ("POST", "/v1/tag", {"image": "app:1", "digest": digest_of(b""), "media_type": "x", "referrers": ["x"]}, 400),
    ],
)
async def test_malformed_request_is_refused(offline: Cache, method: str, path: str, body: Any, status: int) -> None:
    found, answer = await ask(offline, method, path, body)
    assert (found, set(answer)) == (status, {"error"})
    assert not stored(offline)


async def test_content_of_an_import_that_ends_early_may_be_evicted_later(
    offline: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubcache.control.content.HOLD_SECONDS", 0.05)
    status, answer = await ask(offline, "POST", "/v1/content", {"contents": {digest_of(b"x"): 1}})
    assert (status, answer) == (200, {"missing": [digest_of(b"x")]})
    await until(lambda: not offline.engine.store.usage.held)
