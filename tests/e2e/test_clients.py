"""skopeo, podman and containerd pull through both listeners; stored images need no upstream."""

import json

import pytest
from support.e2e.clients import Containerd, Podman, Skopeo, manifest_of
from support.e2e.images import compressed_layer
from support.e2e.upstream import Upstream
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


def test_skopeo_gets_the_exact_bytes_cold_and_warm(skopeo: Skopeo, hub: Hub, upstream: Upstream) -> None:
    for image in (upstream.debian, upstream.webapp):
        cold = skopeo.pull(image.full_name, f"cold-{image.tag}")
        assert (cold / "manifest.json").read_bytes() == image.manifest
        hub.reset_log()
        warm = skopeo.pull(image.full_name, f"warm-{image.tag}")
        assert hub.count() == 0
        assert {path.name: path.read_bytes() for path in warm.iterdir()} == {
            path.name: path.read_bytes() for path in cold.iterdir()
        }


def test_skopeo_pulls_both_platforms_of_an_image_index(skopeo: Skopeo, hub: Hub, upstream: Upstream) -> None:
    for state in ("cold", "warm"):
        hub.reset_log()
        for arch in ("amd64", "arm64"):
            directory = skopeo.pull(upstream.multi.full_name, f"{state}-{arch}", "--override-arch", arch)
            manifest = manifest_of(directory)
            config = json.loads((directory / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())
            layers = [directory / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]
            assert config["architecture"] == arch
            assert config["rootfs"]["diff_ids"] == [compressed_layer(layer.read_bytes()).diff_id for layer in layers]
    assert hub.count() == 0


def test_skopeo_gets_the_raw_image_index(skopeo: Skopeo, hub: Hub, upstream: Upstream) -> None:
    for _ in range(2):
        assert skopeo("inspect", "--raw", f"docker://{upstream.multi.full_name}").encode() == upstream.multi.manifest
    assert hub.count(kind="manifest", method="GET", status=200) == 1


def test_podman_pulls_again_without_upstream(podman: Podman, hub: Hub, upstream: Upstream) -> None:
    assert podman.pull(upstream.webapp.full_name) == upstream.webapp.digest
    podman.forget(upstream.webapp.full_name)
    hub.reset_log()
    assert podman.pull(upstream.webapp.full_name) == upstream.webapp.digest
    assert hub.count() == 0


def test_containerd_pulls_again_without_upstream(containerd: Containerd, hub: Hub, upstream: Upstream) -> None:
    for image in (upstream.webapp, upstream.multi):
        containerd.pull(image.full_name)
        assert containerd.digest(image.full_name) == image.digest
        containerd.forget(image.full_name)
        hub.reset_log()
        containerd.pull(image.full_name)
        assert containerd.digest(image.full_name) == image.digest
        assert hub.count() == 0
        containerd.forget(image.full_name)


def test_containerd_pulls_all_platforms_again_without_upstream(
    containerd: Containerd, hub: Hub, upstream: Upstream
) -> None:
    containerd.pull(upstream.multi.full_name, "--all-platforms")
    containerd.forget(upstream.multi.full_name)
    hub.reset_log()
    containerd.pull(upstream.multi.full_name, "--all-platforms")
    assert containerd.digest(upstream.multi.full_name) == upstream.multi.digest
    assert hub.count() == 0
