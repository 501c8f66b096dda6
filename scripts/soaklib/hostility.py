"""Measures how much hostile clients slow down other clients, one attack after the other.

Attacks that concern any HTTP server run against nginx, too, for comparison.
"""

import http.client
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from .modules import module_command, module_environment, run_module
from .process import memory_of

_SECONDS = 6.0
_GRACE_SECONDS = 120.0
"""Time for the probe to start, and for its last request to time out."""

_SAMPLE_SECONDS = 0.25
_BLOB_BYTES = 8 << 20
_COLD = 200
_COLD_PATH = "/v2/library/cold{}/manifests/1"
"""Images that are not stored."""

_AT_NGINX = ("half_open_mirror", "idle")
"""Attacks that concern any HTTP server."""

_HELD = re.compile(r"^(\d+) connections$", re.MULTILINE)


@dataclass(frozen=True)
class Attack:
    """What one attack did to other clients and to the program.

    `before` and `meanwhile` are the 99th percentiles of the others' response times, in seconds; `failed` counts their
    failed requests, and `memory` is the most memory that the program used during the attack, in bytes."""

    name: str
    about: str
    before: float
    meanwhile: float
    failed: int
    memory: int
    nginx: float | None = None
    """By how much the 99th percentile of nginx rose, in seconds."""
    connections: tuple[int, int] | None = None
    """How many connections the attacker held when the measurement began and when it ended; None when it held none on
    purpose."""


class AttackFailedError(Exception):
    """An attack did not take place as planned, or was not measured, so that its result would prove nothing."""


def attack_all(directory: Path, names: Iterable[str], say: Callable[[str], None]) -> Iterator[Attack]:
    """Run these attacks, each on a new program. Raises `AttackFailedError`."""
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
        before, failed_before = _probe(program.mirror, path)
        command = attacker_command(name, program.proxy, program.mirror)
        with sampling(lambda: memory_of(program)) as memory, attacking(command, digests) as attacker:
            meanwhile, failed = _probe(program.mirror, path, *cold)
        failed += failed_before
        return Attack(name, about, before, meanwhile, failed, memory.most, at_nginx, attacker.connections)
    finally:
        program.stop()


def _warm(program: Program, image: Image, path: str) -> None:
    """Have the image stored: a mirror with `hubcache_mirror_miss=notfound` fetches it in the background."""
    paths = [path, *(f"/v2/{image.repo}/blobs/{digest}" for digest in image.blobs)]
    wait_until(lambda: all(_is_served(program.mirror, each) for each in paths))


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
    """By how much the same attack raises the 99th percentile of nginx, in seconds."""
    port = free_port()
    (directory / "file").write_bytes(b"x" * 1000)
    server = f"access_log off; server {{ listen 127.0.0.1:{port}; root {directory}; }}"
    with nginx(directory / "nginx", 1, server, port):
        before, _ = _probe(port, "/file")
        with attacking(attacker_command(name, port, port), []):
            meanwhile, _ = _probe(port, "/file")
    return meanwhile - before


def _probe(port: int, path: str, *cold: str) -> tuple[float, int]:
    """The 99th percentile of a client's response times, in seconds, and how many of its requests failed."""
    done = run_module("probe", port, path, _SECONDS, *cold, timeout=_SECONDS + _GRACE_SECONDS)
    if done.returncode != 0:
        raise AttackFailedError(f"the probe ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return percentile(json.loads(done.stdout), 99), len(done.stderr.splitlines())


@dataclass
class Peak:
    """The most that was measured; 0 until the measurement has ended."""

    most: int = 0


@contextmanager
def sampling(measure: Callable[[], int | None]) -> Iterator[Peak]:
    """Measure again and again in a thread, and find the maximum; None is no measurement.

    Raises what `measure` raises, and `AttackFailedError` when there was no measurement.
    """
    peak, over = Peak(), threading.Event()

    def sample() -> list[int]:
        found: list[int] = []
        while not over.is_set():
            value = measure()
            if value is not None:
                found.append(value)
            over.wait(_SAMPLE_SECONDS)
        return found

    with ThreadPoolExecutor(1) as pool:
        samples = pool.submit(sample)
        try:
            yield peak
        finally:
            over.set()
        if not samples.result():
            raise AttackFailedError("the program's memory was never measured")
        peak.most = max(samples.result())


@dataclass
class Attacker:
    """A running attack."""

    connections: tuple[int, int] | None = None
    """As in `Attack`; known once the attack has ended."""


def attacker_command(name: str, proxy: int, mirror: int) -> list[str]:
    """The command line of an attack that goes on for longer than a probe."""
    return module_command("attacker", name, proxy, mirror, _SECONDS + _GRACE_SECONDS)


@contextmanager
def attacking(command: list[str], digests: list[str]) -> Iterator[Attacker]:
    """Run an attack as long as the context lasts.

    Raises `AttackFailedError` when the attack does not become ready, ends before the context, or opens no connection.
    """
    attacker = Attacker()
    process = subprocess.Popen(
        command, env=module_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process as one:
        assert one.stdin is not None
        assert one.stdout is not None
        try:
            one.stdin.write(json.dumps(digests) + "\n")
            one.stdin.flush()
            first = one.stdout.readline()
            if first != "ready\n":
                raise AttackFailedError(f"the attacker is not ready: {first!r}")
            yield attacker
            if one.poll() is not None:
                raise AttackFailedError(f"the attacker ended too early, with {one.returncode}")
        finally:
            one.kill()
        counts = [int(count) for count in _HELD.findall(one.stdout.read())]
        if counts and not counts[0]:
            raise AttackFailedError("the attacker holds no connection")
        attacker.connections = (counts[0], counts[-1]) if counts else None


def _publish(hub: Hub) -> tuple[Image, list[str]]:
    """Publish an image for the probe and hostile content; returns the image and the digests of large blobs."""
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
