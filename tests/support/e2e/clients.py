"""Real clients: dockerd with docker, containerd with ctr, podman and skopeo, each with its files in one workspace."""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from support.processes import Daemon, accepts_connections, plain_environment, run
from support.required import require, require_root
from support.standin.content import sha256

from .client_settings import ClientSettings
from .mounts import overlay_works

POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


class DaemonSettings(Protocol):
    """Settings of a dockerd."""

    @property
    def environment(self) -> dict[str, str]: ...
    @property
    def dockerd_arguments(self) -> list[str]: ...


class Docker:
    """A dockerd with these settings (or with other mirror `arguments`), and its docker command."""

    def __init__(self, workspace: Path, settings: DaemonSettings, arguments: Sequence[str] | None = None) -> None:
        require("dockerd", "docker", "containerd", "runc")
        require_root()
        self._socket = workspace / "docker.sock"
        self.env = {"DOCKER_HOST": f"unix://{self._socket}", "DOCKER_CONFIG": str(workspace / "docker-config")}
        options = ["--iptables=false", "--ip6tables=false", "--bridge=none"]
        options += ["--storage-driver=" + ("overlay2" if overlay_works(workspace) else "vfs")]
        options += [
            f"--data-root={workspace}/docker",
            f"--exec-root={workspace}/exec",
            f"--pidfile={workspace}/docker.pid",
        ]
        options += [f"--pidfile={workspace}/docker.pid", f"--host=unix://{self._socket}"]
        options += [*(settings.dockerd_arguments if arguments is None else arguments)]
        self.daemon = Daemon(["dockerd", *options], workspace / "dockerd.log", settings.environment)
        self.daemon.start(lambda: accepts_connections(self._socket) and self._answers(), 60)

    def _answers(self) -> bool:
        done = subprocess.run(
            ["docker", "version"], env=plain_environment() | self.env, capture_output=True, timeout=20, check=False
        )
        return done.returncode == 0

    def __call__(self, *arguments: str, fails: bool = False, stdin: str = "", timeout: float = 180) -> str:
        """Return the output of the docker command; with `fails`, its messages."""
        return run("docker", *arguments, env=self.env, fails=fails, stdin=stdin, timeout=timeout)

    def pulling(self, image: str) -> "subprocess.Popen[bytes]":
        """Start a pull; returns the process of the docker command."""
        return subprocess.Popen(
            ["docker", "pull", image],
            env=plain_environment() | self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def pulled_digest(self, image: str) -> str:
        """Return the manifest digest that dockerd recorded for a pulled image."""
        recorded = json.loads(self("image", "inspect", "--format", "{{json .RepoDigests}}", image))
        repo = image.rpartition(":")[0]
        return next(str(digest) for name, _, digest in (entry.partition("@") for entry in recorded) if name == repo)

    def forget(self, *images: str) -> None:
        """Remove these images, so that the next pull downloads everything; fails if other images remain."""
        self("rmi", "--force", *images)
        assert self("image", "ls", "--all", "--quiet") == ""

    def stop(self) -> None:
        self.daemon.stop()


class Containerd:
    """A containerd with its ctr. It is ctr that sends the requests to the registry, with these settings."""

    def __init__(self, workspace: Path, settings: ClientSettings) -> None:
        require("containerd", "ctr")
        require_root()
        self._socket, self._settings = workspace / "containerd.sock", settings
        config = workspace / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{workspace}/containerd"\nstate = "{workspace}/containerd-state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self._socket}"\n'
        )
        self._snapshotter = "overlayfs" if overlay_works(workspace) else "native"
        self.daemon = Daemon(["containerd", "--config", config], workspace / "containerd.log")
        self.daemon.start(lambda: accepts_connections(self._socket))

    def __call__(self, *arguments: str) -> str:
        """Return the output of ctr."""
        return run("ctr", "--address", self._socket, *arguments, env=self._settings.environment)

    def pull(self, image: str, *more: str) -> None:
        self("images", "pull", "--snapshotter", self._snapshotter, *self._settings.ctr_arguments, *more, image)

    def digest(self, image: str) -> str:
        """Return the digest that the name of a pulled image points to."""
        for line in self("images", "ls").splitlines():
            name, *fields = re.split(r"\s+", line)
            if name == image:
                return next(field for field in fields if field.startswith("sha256:"))
        raise LookupError(f"{image} is not in containerd")

    def forget(self, image: str) -> None:
        """Remove an image with all its content, so that the next pull downloads everything."""
        self("images", "rm", "--sync", image)
        assert self("content", "ls", "--quiet") == ""

    def stop(self) -> None:
        self.daemon.stop()


class Podman:
    """podman with its own storage."""

    def __init__(self, workspace: Path, settings: ClientSettings) -> None:
        require("podman")
        require_root()
        self._settings = settings
        self._options = ["--root", str(workspace / "podman"), "--runroot", str(workspace / "podman-run")]
        self._options += ["--tmpdir", str(workspace / "podman-tmp")]
        self._options += ["--storage-driver", "overlay" if overlay_works(workspace) else "vfs"]
        self._policy = workspace / "policy.json"
        self._policy.write_text(json.dumps(POLICY))

    def __call__(self, *arguments: str) -> str:
        """Return the output of podman."""
        env = {**self._settings.environment, "CONTAINERS_REGISTRIES_CONF": str(self._settings.registries_conf())}
        return run("podman", *self._options, *arguments, env=env)

    def pull(self, image: str) -> str:
        """Pull an image; returns its digest."""
        self("pull", "--signature-policy", str(self._policy), image)
        return self("image", "inspect", "--format", "{{.Digest}}", image).strip()

    def forget(self, image: str) -> None:
        self("rmi", "--force", image)
        assert self("images", "--quiet") == ""


class Skopeo:
    """skopeo, which copies images to directories."""

    def __init__(self, workspace: Path, settings: ClientSettings) -> None:
        require("skopeo")
        self._workspace, self._settings = workspace, settings
        self._policy = workspace / "policy.json"
        self._policy.write_text(json.dumps(POLICY))

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        """Return the output of skopeo; with `fails`, its messages."""
        env = {**self._settings.environment, "REGISTRY_AUTH_FILE": str(self._workspace / "skopeo-auth.json")}
        files = ["--policy", str(self._policy), "--registries-conf", str(self._settings.registries_conf())]
        return run("skopeo", *files, *arguments, env=env, fails=fails)

    def digest(self, image: str) -> str:
        """Return the digest of the manifest that Docker Hub has under a name (`alice/app:1`)."""
        return sha256(self("inspect", "--raw", f"docker://docker.io/{image}").encode())

    def pull(self, image: str, name: str, *more: str) -> Path:
        """Copy an image to a new directory called `name`, and verify the digests of all blobs."""
        target = self._workspace / name
        self(*more, "copy", f"docker://{image}", f"dir:{target}")
        blobs = [path for path in target.iterdir() if re.fullmatch(r"[0-9a-f]{64}", path.name)]
        assert blobs
        assert all(sha256(path.read_bytes()) == f"sha256:{path.name}" for path in blobs)
        return target


def manifest_of(directory: Path) -> dict[str, Any]:
    """Return the manifest in a directory that skopeo made."""
    parsed: dict[str, Any] = json.loads((directory / "manifest.json").read_bytes())
    return parsed
