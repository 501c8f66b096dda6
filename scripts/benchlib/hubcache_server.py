"""Runs the addon of a checkout in mitmdump or mitmweb."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .cpu_groups import CpuGroup
from .metrics import Metrics
from .processes import BenchError, free_port, listening, running
from .server import Server, Setup, plain_server

REPOSITORY = Path(__file__).parents[2]
"""This checkout."""

HUB = "registry-1.docker.io"

_WORKERS_SECONDS = 60.0
"""How long the program itself waits for its workers."""


@contextmanager
def run_hubcache(
    name: str,
    checkout: Path,
    setup: Setup,
    *arguments: str,
    workers: int = 1,
    web: bool = False,
    mirror: bool = False,
    environment: Mapping[str, str] | None = None,
    machine: CpuGroup | None = None,
) -> Iterator[Server]:
    """Run the addon of a checkout. Clients use the proxy port with CONNECT, as dockerd does with HTTPS_PROXY, and trust
    the certificate authority in the directory `certs` of the checkout; with `mirror` they use the mirror port. With
    `machine`, the program and its clients run in that group.

    The server is yielded when it serves: all ports listen, and all `workers` (if there are several, the only processes
    that serve) are connected; its `started_in` is the time until then. Else the first round would include the start of
    workers. Raises `BenchError`.
    """
    directory = setup.directory / name
    directory.mkdir(parents=True, exist_ok=True)
    proxy, mirror_port, status, web_port = free_port(), free_port(), free_port(), free_port()
    options = {
        "hubcache_dir": directory / "store",
        "hubcache_registries": f"{HUB}={setup.upstream.url}",
        "hubcache_size": "40G",
        "hubcache_status": f"127.0.0.1:{status}",
        "ssl_verify_upstream_trusted_ca": setup.certificates.authority,
    }
    if workers > 1:
        options["hubcache_workers"] = workers
    ports = [proxy, mirror_port, status]
    if web:
        options |= {"web_open_browser": "false", "web_host": "127.0.0.1", "web_port": web_port}
        ports.append(web_port)
    program = setup.python.parent / ("mitmweb" if web else "mitmdump")
    command: list[object] = [*(machine.prefix if machine else ()), program, "-q", "-s", checkout / "addon" / "cache.py"]
    command += ["--mode", f"regular@127.0.0.1:{proxy}", "--mode", f"reverse:https://{HUB}@127.0.0.1:{mirror_port}"]
    for option, value in options.items():
        command += ["--set", f"{option}={value}"]
    command += [*setup.options, *arguments]
    own_modules_only = {"PYTHONPATH": ""}  # else a checkout could import the modules of another one
    began = time.monotonic()
    variables = own_modules_only | dict(environment or {})
    with running(command, directory, listening(*ports), variables, seconds=60) as pid:
        trust = directory / "trust"
        server = Server(
            *(name, pid, f"https://{HUB}", "docker.io", trust, f"127.0.0.1:{proxy}"),
            machine=machine,
            status=f"http://127.0.0.1:{status}",
        )
        if workers > 1:
            wait_for_workers(server, workers)
        seconds = time.monotonic() - began
        authority = checkout / "certs" / "mitmproxy-ca-cert.pem"
        if not authority.exists():
            raise BenchError(f"{name} did not create {authority}")
        trust.mkdir(exist_ok=True)
        (trust / "ca.pem").write_bytes(authority.read_bytes())
        yield plain_server(name, pid, mirror_port, trust) if mirror else replace(server, started_in=seconds)


def wait_for_workers(server: Server, count: int, seconds: float = _WORKERS_SECONDS) -> None:
    """Wait until `count` workers of a server are connected; raises `BenchError` if they are not after `seconds`, or if
    the program ends."""
    deadline = time.monotonic() + seconds
    while (connected := Metrics.read(server).total("hubcache_workers")) < count:
        if time.monotonic() > deadline:
            raise BenchError(f"{server.name}: {connected:.0f} of {count} workers are connected after {seconds:.0f} s")
        time.sleep(0.05)
