"""skopeo, podman and containerd pull through both doors, and what is stored needs no upstream."""

import json

import pytest
from support.lab.clients import Containerd, Podman, Skopeo, manifest_of
from support.lab.images import layer_of
from support.lab.origin import Origin
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


def test_skopeo_gets_the_exact_bytes_cold_and_warm(skopeo: Skopeo, hub: Hub, origin: Origin) -> None:
    for image in (origin.debian, origin.webapp):
        cold = skopeo.pull(image.full_name, f"cold-{image.tag}")
        assert (cold / "manifest.json").read_bytes() == image.manifest
        hub.reset_log()
        warm = skopeo.pull(image.full_name, f"warm-{image.tag}")
        assert hub.count() == 0
        assert {path.name: path.read_bytes() for path in warm.iterdir()} == {
            path.name: path.read_bytes() for path in cold.iterdir()
        }


def test_skopeo_pulls_both_platforms_of_an_index(skopeo: Skopeo, hub: Hub, origin: Origin) -> None:
    for state in ("cold", "warm"):
        hub.reset_log()
        for arch in ("amd64", "arm64"):
            directory = skopeo.pull(origin.multi.full_name, f"{state}-{arch}", "--override-arch", arch)
            manifest = manifest_of(directory)
            config = json.loads((directory / manifest["config"]["digest"].removeprefix("sha256:")).read_bytes())
            layers = [directory / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]
            assert config["architecture"] == arch
            assert config["rootfs"]["diff_ids"] == [layer_of(layer.read_bytes()).diff_id for layer in layers]
    assert hub.count() == 0


def test_skopeo_sees_the_raw_index(skopeo: Skopeo, hub: Hub, origin: Origin) -> None:
    for _ in range(2):
        assert skopeo("inspect", "--raw", f"docker://{origin.multi.full_name}").encode() == origin.multi.manifest
    assert hub.count(kind="manifest", method="GET", status=200) == 1


def test_podman_pulls_again_without_upstream(podman: Podman, hub: Hub, origin: Origin) -> None:
    assert podman.pull(origin.webapp.full_name) == origin.webapp.digest
    podman.forget(origin.webapp.full_name)
    hub.reset_log()
    assert podman.pull(origin.webapp.full_name) == origin.webapp.digest
    assert hub.count() == 0


def test_containerd_pulls_again_without_upstream(containerd: Containerd, hub: Hub, origin: Origin) -> None:
    for image in (origin.webapp, origin.multi):
        containerd.pull(image.full_name)
        assert containerd.digest(image.full_name) == image.digest
        containerd.forget(image.full_name)
        hub.reset_log()
        containerd.pull(image.full_name)
        assert containerd.digest(image.full_name) == image.digest
        assert hub.count() == 0
        containerd.forget(image.full_name)


def test_containerd_pulls_all_platforms(containerd: Containerd, hub: Hub, origin: Origin) -> None:
    containerd.pull(origin.multi.full_name, "--all-platforms")
    containerd.forget(origin.multi.full_name)
    hub.reset_log()
    containerd.pull(origin.multi.full_name, "--all-platforms")
    assert hub.count() == 0
