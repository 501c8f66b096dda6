"""How much hostile clients slow down others: each attack in turn, and the same at nginx where it has the case."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchlib.nginx import nginx
from benchlib.stats import percentile
from support.http_client import wait_until
from support.ports import free_port
from support.program import Program
from support.standin import Hub, Image, Synthetic
from support.standin.media import OCI_INDEX, OCI_MANIFEST

from .attacker import ATTACKS, LARGE, LEAVERS, NESTED, WIDE
from .process import sample

_SECONDS = 6.0
_BLOB_BYTES = 8 << 20
_COLD = 200
_COLD_PATH = "/v2/library/cold{}/manifests/1"
"""Images that are not stored."""

_AT_NGINX = ("half_open_mirror", "idle")
"""Attacks that mean something to any HTTP server."""


@dataclass(frozen=True)
class Attack:
    """What one attack did to others: their 99th percentile before and meanwhile, in seconds, requests of theirs that
    failed, and the most memory that the program had, in bytes."""

    name: str
    about: str
    before: float
    meanwhile: float
    failed: int
    memory: int
    nginx: float | None = None
    """By how much nginx's 99th percentile rose."""


def attack_all(directory: Path, names: Iterable[str], say: Callable[[str], None]) -> Iterator[Attack]:
    """Each of these attacks on a program of its own."""
    with Hub() as hub:
        image, digests = _publish(hub)
        for name in names:
            say(f"attack: {name}")
            folder = directory / name
            folder.mkdir()
            at_nginx = _attack_nginx(folder, name) if name in _AT_NGINX else None
            yield _attack(folder, hub, image, digests, name, (ATTACKS[name].__doc__ or "").rstrip("."), at_nginx)


def _attack(
    directory: Path, hub: Hub, image: Image, digests: list[str], name: str, about: str, at_nginx: float | None
) -> Attack:
    misses = "notfound" if name in ("nested", "agents") else "fetch"
    program = Program(directory, hub, {"hubcache_mirror_miss": misses, "hubcache_admit_after": "1"})
    program.start()
    try:
        path = f"/v2/{image.repo}/manifests/{image.tag}"
        _warm(program, image, path)
        cold = [] if misses == "notfound" else [_COLD_PATH]
        before, _ = _probe(program.mirror, path)
        with _attacking(name, program.proxy, program.mirror, digests):
            meanwhile, failed = _probe(program.mirror, path, *cold)
            found = sample(program)
        memory = 0 if found is None else found.memory
        return Attack(name, about, before, meanwhile, failed, memory, at_nginx)
    finally:
        program.stop()


def _warm(program: Program, image: Image, path: str) -> None:
    """Have the image stored; a mirror that offers only what it has fetches it in the background."""
    paths = [f"/v2/{image.repo}/blobs/{digest}" for digest in image.blobs]
    wait_until(lambda: all(_is_served(program.mirror, each) for each in (path, *paths)))


def _is_served(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status == 200
    finally:
        connection.close()


def _attack_nginx(directory: Path, name: str) -> float:
    """The rise of nginx's 99th percentile under the same attack."""
    port = free_port()
    (directory / "file").write_bytes(b"x" * 1000)
    server = f"access_log off; server {{ listen 127.0.0.1:{port}; root {directory}; }}"
    with nginx(directory / "nginx", 1, server, port):
        before, _ = _probe(port, "/file")
        with _attacking(name, port, port, []):
            meanwhile, _ = _probe(port, "/file")
    return meanwhile - before


def _probe(port: int, path: str, *more: str) -> tuple[float, int]:
    """The 99th percentile of what a client waited, in seconds, and how many requests failed."""
    done = subprocess.run(
        [sys.executable, "-m", "soaklib.probe", str(port), path, str(_SECONDS), *more],
        env=_environment(),
        capture_output=True,
        check=True,
        text=True,
    )
    return percentile(json.loads(done.stdout), 99), len(done.stderr.splitlines())


@contextmanager
def _attacking(name: str, proxy: int, mirror: int, digests: list[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "soaklib.attacker", name, str(proxy), str(mirror), str(_SECONDS + 10)]
    with subprocess.Popen(command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdin is not None
        assert one.stdout is not None
        try:
            one.stdin.write(json.dumps(digests) + "\n")
            one.stdin.flush()
            one.stdout.readline()
            yield
        finally:
            one.kill()


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def _publish(hub: Hub) -> tuple[Image, list[str]]:
    """An image for the probe, and hostile content; returns digests of large blobs, too."""
    image = hub.image("library/app", "1", [b"layer"])
    digests = [hub.blob(WIDE, Synthetic(_BLOB_BYTES, f"wide {number}")) for number in range(LEAVERS)]
    for number in range(_COLD):
        hub.image(f"library/cold{number}", "1", [b"cold"])
    hub.memory.repository(NESTED).manifests.update(hub.memory.repository(image.repo).manifests)
    hub.memory.repository(NESTED).blobs.update(hub.memory.repository(image.repo).blobs)
    digest, size = image.digest, len(image.manifest)
    for _ in range(6):
        child = {"digest": digest, "size": size, "platform": {"os": "linux", "architecture": "amd64"}}
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] * 9}).encode()
        digest, size = hub.manifest(NESTED, "1", body, OCI_INDEX), len(body)
    for number in range(5):
        layers = [{"digest": f"sha256:{number:032x}{layer:032x}", "size": 1} for layer in range(40_000)]
        body = json.dumps({"schemaVersion": 2, "layers": layers}, separators=(",", ":")).encode()
        hub.manifest(LARGE, str(number), body, OCI_MANIFEST)
    return image, digests
