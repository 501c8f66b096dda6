"""The real clients: dockerd with docker, containerd with ctr, podman and skopeo, each with its files in one room."""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.processes import Daemon, accepts, plain_environment, require, require_root, run
from support.standin.content import sha256

from .doors import Door
from .mounts import overlay_works

POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


class Docker:
    """A dockerd that reaches Docker Hub through *door* (or by other *arguments*), and the docker command for it."""

    def __init__(self, room: Path, door: Door, arguments: Sequence[str] | None = None) -> None:
        require("dockerd", "docker", "containerd", "runc")
        require_root()
        self._socket = room / "docker.sock"
        self.env = {"DOCKER_HOST": f"unix://{self._socket}", "DOCKER_CONFIG": str(room / "docker-config")}
        options = ["--iptables=false", "--ip6tables=false", "--bridge=none"]
        options += ["--storage-driver=" + ("overlay2" if overlay_works(room) else "vfs")]
        options += [f"--data-root={room}/docker", f"--exec-root={room}/exec", f"--pidfile={room}/docker.pid"]
        options += [f"--host=unix://{self._socket}", *(door.dockerd_arguments if arguments is None else arguments)]
        self.daemon = Daemon(["dockerd", *options], room / "dockerd.log", door.environment)
        self.daemon.start(lambda: accepts(self._socket) and self._answers(), 60)

    def _answers(self) -> bool:
        done = subprocess.run(
            ["docker", "version"], env=plain_environment() | self.env, capture_output=True, timeout=20, check=False
        )
        return done.returncode == 0

    def __call__(self, *arguments: str, fails: bool = False, stdin: str = "", timeout: float = 180) -> str:
        """Output of the docker command."""
        return run("docker", *arguments, env=self.env, fails=fails, stdin=stdin, timeout=timeout)

    def refusal(self, image: str) -> str:
        """What docker tells its user of a pull that fails."""
        done = subprocess.run(
            ["docker", "pull", image],
            env=plain_environment() | self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0
        return done.stderr

    def pulling(self, image: str) -> "subprocess.Popen[bytes]":
        """A pull under way."""
        return subprocess.Popen(
            ["docker", "pull", image],
            env=plain_environment() | self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def pulled_digest(self, image: str) -> str:
        """The manifest digest that dockerd noted for a pulled image."""
        noted = json.loads(self("image", "inspect", "--format", "{{json .RepoDigests}}", image))
        repo = image.rpartition(":")[0]
        return next(str(digest) for name, _, digest in (entry.partition("@") for entry in noted) if name == repo)

    def forget(self, *images: str) -> None:
        """Remove all images there are, so that the next pull fetches everything."""
        self("rmi", "--force", *images)
        assert self("image", "ls", "--all", "--quiet") == ""

    def stop(self) -> None:
        self.daemon.stop()


class Containerd:
    """A containerd, and ctr for it; ctr itself talks to the registry, through *door*."""

    def __init__(self, room: Path, door: Door) -> None:
        require("containerd", "ctr")
        require_root()
        self._socket, self._door = room / "containerd.sock", door
        config = room / "containerd.toml"
        config.write_text(
            f'version = 2\nroot = "{room}/containerd"\nstate = "{room}/containerd-state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{self._socket}"\n'
        )
        self._snapshotter = "overlayfs" if overlay_works(room) else "native"
        self.daemon = Daemon(["containerd", "--config", config], room / "containerd.log")
        self.daemon.start(lambda: accepts(self._socket))

    def __call__(self, *arguments: str) -> str:
        """Output of ctr."""
        return run("ctr", "--address", self._socket, *arguments, env=self._door.environment)

    def pull(self, image: str, *more: str) -> None:
        self("images", "pull", "--snapshotter", self._snapshotter, *self._door.ctr_arguments, *more, image)

    def digest(self, image: str) -> str:
        """The digest that a pulled image's name points to."""
        for line in self("images", "ls").splitlines():
            name, *fields = re.split(r"\s+", line)
            if name == image:
                return next(field for field in fields if field.startswith("sha256:"))
        raise LookupError(f"{image} is not there")

    def forget(self, image: str) -> None:
        """Remove an image with all its content, so that the next pull fetches everything."""
        self("images", "rm", "--sync", image)
        assert self("content", "ls", "--quiet") == ""

    def stop(self) -> None:
        self.daemon.stop()


class Podman:
    """podman with its own storage."""

    def __init__(self, room: Path, door: Door) -> None:
        require("podman")
        require_root()
        self._door = door
        self._places = ["--root", str(room / "podman"), "--runroot", str(room / "podman-run")]
        self._places += ["--tmpdir", str(room / "podman-tmp")]
        self._places += ["--storage-driver", "overlay" if overlay_works(room) else "vfs"]
        self._policy = room / "policy.json"
        self._policy.write_text(json.dumps(POLICY))

    def __call__(self, *arguments: str) -> str:
        """Output of podman."""
        env = {**self._door.environment, "CONTAINERS_REGISTRIES_CONF": str(self._door.registries_conf())}
        return run("podman", *self._places, *arguments, env=env)

    def pull(self, image: str) -> str:
        """Pull an image; returns its digest."""
        self("pull", "--signature-policy", str(self._policy), image)
        return self("image", "inspect", "--format", "{{.Digest}}", image).strip()

    def forget(self, image: str) -> None:
        self("rmi", "--force", image)
        assert self("images", "--quiet") == ""


class Skopeo:
    """skopeo copying to directories."""

    def __init__(self, room: Path, door: Door) -> None:
        require("skopeo")
        self._room, self._door = room, door
        self._policy = room / "policy.json"
        self._policy.write_text(json.dumps(POLICY))

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        """Output of skopeo."""
        env = {**self._door.environment, "REGISTRY_AUTH_FILE": str(self._room / "skopeo-auth.json")}
        files = ["--policy", str(self._policy), "--registries-conf", str(self._door.registries_conf())]
        return run("skopeo", *files, *arguments, env=env, fails=fails)

    def digest(self, image: str) -> str:
        """The digest of the manifest that a name of Docker Hub (``alice/app:1``) answers with."""
        return sha256(self("inspect", "--raw", f"docker://docker.io/{image}").encode())

    def pull(self, image: str, name: str, *more: str) -> Path:
        """Copy an image to a new directory called *name*, with all its bytes checked against their digests."""
        target = self._room / name
        self(*more, "copy", f"docker://{image}", f"dir:{target}")
        blobs = [path for path in target.iterdir() if re.fullmatch(r"[0-9a-f]{64}", path.name)]
        assert blobs
        assert all(sha256(path.read_bytes()) == f"sha256:{path.name}" for path in blobs)
        return target


def manifest_of(directory: Path) -> dict[str, Any]:
    """The manifest in a directory that skopeo made."""
    parsed: dict[str, Any] = json.loads((directory / "manifest.json").read_bytes())
    return parsed
