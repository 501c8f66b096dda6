"""Images go from one cache to another in OCI image layouts, without a network between them."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from hubcache.cli.errors import REFUSED
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Listener
from support.engine import Cache, running
from support.engine29 import attested
from support.exports import command, export_fixtures, succeeds
from support.layouts import CONTAINERD, LayoutFiles, digest_of
from support.required import require
from support.standin import Hub, Image
from support.users import EACH_LISTENER, pull

offline, image = export_fixtures()


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
