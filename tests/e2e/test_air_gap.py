"""Images that the command line fetched, exported and imported are pulled by real clients without a network."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.e2e.client_settings import ClientSettings
from support.e2e.clients import Containerd, Docker, Podman, Skopeo
from support.e2e.upstream import Upstream
from support.paths import ADDON
from support.processes import plain_environment
from support.program import LISTENERS, Program
from support.standin import Hub

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400, func_only=True)]


def hubcache(program: Program, *arguments: str, code: int = 0) -> str:
    """Run a command of the command line for a program; return both outputs."""
    done = subprocess.run(
        [sys.executable, "-m", "hubcache.cli", *arguments],
        env=plain_environment() | {"HUBCACHE_DIR": str(program.store), "PYTHONPATH": str(ADDON)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def damage(program: Program) -> None:
    """Change a byte of the largest stored blob."""
    blob = max((path for path in program.store.rglob("blobs/*/*")), key=lambda path: path.stat().st_size)
    with blob.open("r+b") as file:
        file.seek(100)
        before = file.read(1)
        file.seek(100)
        file.write(bytes([before[0] ^ 0xFF]))


def clients_of(program: Program, workspace: Path) -> list[Skopeo]:
    """Return a skopeo for each listener."""
    folders = [workspace / f"{program.directory.name}-{listener}" for listener in LISTENERS]
    for folder in folders:
        folder.mkdir()
    return [
        Skopeo(folder, ClientSettings(listener, program, folder))
        for folder, listener in zip(folders, LISTENERS, strict=True)
    ]


def test_warm_image_is_repaired_and_pulled_in_an_outage_until_it_is_purged(
    program: Program, hub: Hub, upstream: Upstream, workspace: Path
) -> None:
    name = upstream.multi.full_name
    output = hubcache(program, "warm", name, "--platform", "linux/amd64")
    assert f"{name}: stored" in output
    damage(program)
    assert "1 damaged" in hubcache(program, "verify", code=1)
    assert "1 repaired" in hubcache(program, "verify", "--repair")
    hub.stop()
    skopeos = clients_of(program, workspace)
    for skopeo in skopeos:
        skopeo.pull(name, "warm", "--override-arch", "amd64")
        skopeo("--override-arch", "arm64", "copy", f"docker://{name}", f"dir:{workspace}/none", fails=True)
    hubcache(program, "purge", name, "--yes")
    for skopeo in skopeos:
        skopeo("--override-arch", "amd64", "copy", f"docker://{name}", f"dir:{workspace}/none", fails=True)


def test_exported_images_are_imported_and_pulled_without_a_network(
    programs: Callable[..., Program], hub: Hub, upstream: Upstream, workspace: Path
) -> None:
    online = programs("online")
    names = [upstream.multi.full_name, upstream.webapp.full_name]
    hubcache(online, "warm", *names, "--all-platforms")
    hubcache(online, "export", *names, "--output", str(workspace / "images.tar"))
    hub.stop()
    hub.reset_log()
    offline = programs("offline", hubcache_offline="true", hubcache_tag_ttl="0")
    hubcache(offline, "import", str(workspace / "images.tar"))
    for skopeo in clients_of(offline, workspace):
        pulled = skopeo.pull(upstream.webapp.full_name, "webapp")
        assert (pulled / "manifest.json").read_bytes() == upstream.webapp.manifest
        for arch in ("amd64", "arm64"):
            skopeo.pull(upstream.multi.full_name, f"multi-{arch}", "--override-arch", arch)
    assert hub.count() == 0


def test_export_is_loaded_by_podman_and_containerd(program: Program, upstream: Upstream, workspace: Path) -> None:
    """Of an image index only the platform that is stored is in the archive."""
    names = [upstream.multi.full_name, upstream.webapp.full_name]
    archive = workspace / "images.tar"
    hubcache(program, "warm", *names, "--platform", "linux/amd64")
    hubcache(program, "export", *names, "-o", str(archive))
    settings = ClientSettings("proxy", program, workspace)
    containerd = Containerd(workspace, settings)
    try:
        containerd("images", "import", "--platform", "linux/amd64", str(archive))
        for image in (upstream.multi, upstream.webapp):
            assert containerd.digest(image.full_name) == image.digest
    finally:
        containerd.stop()
    hubcache(program, "export", upstream.webapp.full_name, "-o", str(workspace / "webapp.tar"))
    podman = Podman(workspace, settings)
    podman("load", "--input", str(workspace / "webapp.tar"))
    assert upstream.webapp.full_name in podman("images", "--format", "{{.Repository}}:{{.Tag}}")


def test_export_is_loaded_by_docker(
    program: Program, upstream: Upstream, workspace: Path, proxy_docker: Docker
) -> None:
    hubcache(program, "warm", upstream.multi.full_name, upstream.webapp.full_name)
    hubcache(
        program, "export", upstream.multi.full_name, upstream.webapp.full_name, "-o", str(workspace / "images.tar")
    )
    proxy_docker("load", "--input", str(workspace / "images.tar"))
    names = proxy_docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    assert sorted(names) == sorted([upstream.multi.name, upstream.webapp.name])
    config = json.loads(upstream.webapp.manifest)["config"]["digest"]
    assert proxy_docker("image", "inspect", "--format", "{{.Id}}", upstream.webapp.name).strip() == config
