"""The clients: curl for large bodies, hey for many small requests, and skopeo for whole pulls.

The client shares the cores with the server, so its own cost matters. CPU time of the client for a new TLS connection
and a 4 KB request, on two cores with OpenSSL 3.0: 0.7 ms with hey (which uses Go's TLS, as dockerd does), 1.1 ms with a
C program on OpenSSL, 1.3 to 1.9 ms with Python's ssl, 1.9 ms with curl. Like dockerd, none of the clients resumes TLS
sessions.
"""

import csv
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .images import MANIFEST_TYPE, Content
from .processes import BenchError
from .server import Server

_CURL = ("curl", "--silent", "--show-error", "--no-progress-meter", "--http1.1", "--no-sessionid", "--config", "-")
_WRITE = "%{http_code} %{size_download} %{time_pretransfer} %{time_starttransfer}\\n"


@dataclass(frozen=True, slots=True)
class Download:
    """What one client received, with times in seconds since the epoch. `requested` and `first_byte` are those of its
    first file; `waits` are the seconds from request to first byte of each file."""

    started: float
    requested: float
    first_byte: float
    ended: float
    bytes: int
    waits: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.ended - self.started


def download(
    server: Server, clients: Sequence[Sequence[str]], parallel: int = 1, timeout: float = 60
) -> list[Download]:
    """Run a client of the server for each list of paths, as `download_from` does."""
    return download_from([(server, paths) for paths in clients], parallel, timeout)


def download_from(
    clients: Sequence[tuple[Server, Sequence[str]]], parallel: int = 1, timeout: float = 60
) -> list[Download]:
    """Run a client for each server and list of paths. Like dockerd, it requests `parallel` paths at a time, on new
    connections.

    A client runs in the machine of its server, if that has one. The clients are started and wait for their
    configuration before time is measured. Raises `BenchError` if a client fails or is not done after `timeout` seconds.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    machines = [server.machine for server, _ in clients]
    commands = [[*(machine.prefix if machine else ()), *_CURL] for machine in machines]
    processes = [subprocess.Popen(command, **pipes, text=True) for command in commands]
    results: list[Download | str] = ["not done"] * len(clients)
    configurations = [_curl_configuration(server, paths, parallel) for server, paths in clients]

    def communicate(number: int) -> None:
        process = processes[number]
        try:
            output, errors = process.communicate(configurations[number], timeout=max(deadline - time.time(), 0))
        except subprocess.TimeoutExpired:
            results[number] = f"not done after {timeout:.0f} seconds"
        else:
            results[number] = _result(started, time.time(), output, len(clients[number][1])) or _failure(output, errors)

    try:
        time.sleep(0.1 + 0.02 * len(clients))
        started = time.time()
        deadline = started + timeout
        threads = [threading.Thread(target=communicate, args=(number,)) for number in range(len(clients))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for (server, _), result in zip(clients, results, strict=True):
        if isinstance(result, str):
            raise BenchError(f"{server.name}: {result[:200]}")
    return [result for result in results if isinstance(result, Download)]


def _curl_configuration(server: Server, paths: Sequence[str], parallel: int) -> str:
    lines = [f'cacert = "{server.trust}/ca.pem"', f'write-out = "{_WRITE}"', 'header = "Connection: close"']
    lines.append(f'header = "Accept: {MANIFEST_TYPE}, */*"')
    lines += [f'header = "{header}"' for header in server.headers]
    lines.append(f'proxy = "http://{server.proxy}"' if server.proxy else 'noproxy = "*"')
    if parallel > 1:
        lines += ["parallel", "parallel-immediate", f"parallel-max = {parallel}"]
    for path in paths:
        lines += [f'url = "{server.origin}{path}"', 'output = "/dev/null"']
    return "\n".join(lines) + "\n"


def _result(started: float, ended: float, output: str, expected: int) -> Download | None:
    rows = [line.split() for line in output.splitlines()]
    if len(rows) != expected or any(row[0] != "200" for row in rows):
        return None
    return Download(
        started,
        started + float(rows[0][2]),
        started + float(rows[0][3]),
        ended,
        sum(int(row[1]) for row in rows),
        tuple(float(row[3]) - float(row[2]) for row in rows),
    )


def _failure(output: str, errors: str) -> str:
    wrong = [line.split()[0] for line in output.splitlines() if not line.startswith("200 ")]
    return errors.strip() or f"status {wrong[0]}" if wrong else "fewer responses than requests"


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Many small requests: the duration of all, and for each the time from connecting to the first byte, in seconds."""

    seconds: float
    first_bytes: list[float]


def request_repeatedly(server: Server, path: str, clients: int, seconds: float, *, keep_alive: bool) -> LoadResult:
    """Request one path repeatedly; raises `BenchError` if a response is not 200."""
    command = ["hey", "-z", f"{seconds}s", "-c", str(clients), "-o", "csv", "-disable-redirects"]
    command += [] if keep_alive else ["-disable-keepalive"]
    command += ["-x", f"http://{server.proxy}"] if server.proxy else []
    command += ["-host", server.origin.partition("://")[2].partition(":")[0]]  # else the SNI contains the port
    for header in (f"Accept: {MANIFEST_TYPE}", *server.headers):
        command += ["-H", header]
    done = _run([*command, server.origin + path], {}, seconds + 30)
    rows = list(csv.DictReader(done.splitlines()))
    wrong = [row["status-code"] for row in rows if row["status-code"] != "200"]
    if wrong or not rows:
        raise BenchError(f"{server.name}: {len(rows)} responses, {len(wrong)} of them not 200 (first: {wrong[:1]})")
    end = max(float(row["offset"]) + float(row["response-time"]) for row in rows)
    parts = ("DNS+dialup", "Request-write", "Response-delay")
    return LoadResult(end, [sum(float(row[part]) for part in parts) for row in rows])


def pull(server: Server, image: Content, timeout: float = 120) -> float:
    """Pull an image with skopeo and return the duration in seconds. The image goes to memory if there is enough."""
    memory = Path("/dev/shm")
    enough = memory.is_dir() and shutil.disk_usage(memory).free > 3 * image.size
    with tempfile.TemporaryDirectory(prefix="bench-pull-", dir=memory if enough else None) as directory:
        command = ["skopeo", "copy", "--quiet", "--insecure-policy"]
        command += [f"docker://{server.registry}/{image.name}:{image.tag}", f"dir:{directory}/image"]
        proxy = f"http://{server.proxy}" if server.proxy else ""
        trust = {"SSL_CERT_DIR": str(server.trust), "SSL_CERT_FILE": str(server.trust / "ca.pem")}
        started = time.monotonic()
        _run(command, trust | {"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}, timeout)
        return time.monotonic() - started


def _run(command: list[str], environment: dict[str, str], timeout: float) -> str:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]} was not done after {timeout:.0f} seconds") from error
    if done.returncode != 0:
        raise BenchError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
