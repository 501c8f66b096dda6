"""Checks whether the container engines of this machine use the cache, from their configuration files."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding, ok, skipped, warning
from .target import Target

ROOT = "HUBCACHE_ATTACH_ROOT"
"""Environment variable with a prefix of all files, as for `hubcache attach`; tests set it."""

ENGINES = {
    "docker": (
        *(
            "etc/docker/daemon.json",
            "etc/docker/certs.d/docker.io/hosts.toml",
            "etc/docker/certs.d/_default/hosts.toml",
        ),
        "etc/systemd/system/docker.service.d/hubcache.conf",
    ),
    "containerd": ("etc/containerd/certs.d/docker.io/hosts.toml", "etc/containerd/certs.d/_default/hosts.toml"),
    "podman": ("etc/containers/registries.conf.d/50-hubcache.conf", "etc/containers/registries.conf"),
    "k3s": ("etc/rancher/k3s/registries.yaml",),
    "rke2": ("etc/rancher/rke2/registries.yaml",),
}
"""By engine: the files that `setup/attach.sh` and the set-up page name, of which one must name the cache."""

_PROGRAMS = {"docker": ("dockerd", "docker"), "podman": ("podman", "buildah", "skopeo", "crio")}
_MAX_BYTES = 1 << 20


def check_engines(target: Target) -> Iterator[Finding]:
    """Look for the cache's address in the files of each engine that is installed."""
    root = Path(os.environ.get(ROOT) or "/")
    addresses = {f"{target.host}:{port}" for port in (target.mirror_port, target.proxy_port) if port is not None}
    found = False
    for engine, files in ENGINES.items():
        programs = _PROGRAMS.get(engine, (engine,))
        configured = [root / name for name in files if (root / name).is_file()]
        if not configured and not any(map(shutil.which, programs)):
            continue
        found = True
        naming = [path for path in configured if any(address in _read(path) for address in addresses)]
        if naming:
            yield ok(engine, f"it uses this cache ({naming[0]})")
        else:
            yield warning(
                engine,
                f"no configuration file of {engine} names {' or '.join(sorted(addresses)) or target.host}",
                f"hubcache attach {target.mirror_name()}, or see http://{target.mirror_name()}/setup",
            )
    if not found:
        yield skipped("engines", "no container engine is installed on this machine")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
