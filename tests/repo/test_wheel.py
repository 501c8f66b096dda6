"""The package as it is installed: a wheel in an environment of its own, without the checkout."""

import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from hubcache.operate.version import version
from support.paths import ADDON, REPOSITORY
from support.processes import run
from support.program import HUB_HOST, Program
from support.standin import Hub, random_bytes
from support.uv import uv
from support.worker_processes import processes_of

REPO = "library/app"


def build(source: Path, target: str, directory: Path) -> Path:
    """Build the wheel or the sdist of a copy of the repository, without network; returns the file."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", directory, cwd=source)
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build(REPOSITORY, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which the wheel is installed. It takes the dependencies from the environment of the tests."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, symlinks=True)
    python = root / "bin/python"
    (site,) = root.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(uv(), "pip", "install", "--offline", "--no-cache", "--no-deps", "--python", python, wheel)
    mitmdump = root / "bin/mitmdump"  # as the installation of mitmproxy writes it
    mitmdump.write_text(f"#!{python}\nfrom mitmproxy.tools.main import mitmdump\n\nmitmdump()\n")
    mitmdump.chmod(0o755)
    return root


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_has_all_files_of_the_package(wheel: Path) -> None:
    files = {path for path in (ADDON / "hubcache").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {"attach.sh", "README.md", "startup.py"} <= {path.name for path in files}
    packaged = {name for name in names(wheel) if name.startswith("hubcache/")}
    scripts = {"hubcache/scripts/cache.py", "hubcache/scripts/worker.py"}
    assert packaged == {path.relative_to(ADDON).as_posix() for path in files} | scripts


def test_wheel_from_the_sdist_has_the_same_files(wheel: Path, tmp_path: Path) -> None:
    sdist = build(REPOSITORY, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    assert names(build(tmp_path / sdist.name.removesuffix(".tar.gz"), "wheel", tmp_path / "wheel")) == names(wheel)


def test_version_is_that_of_the_checkout(environment: Path, tmp_path: Path) -> None:
    assert run(environment / "bin/hubcache", "--version", cwd=tmp_path) == f"hubcache {version()}\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_installed_program_serves_without_the_checkout(
    environment: Path, tmp_path: Path, hub: Hub, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = random_bytes(100_000)
    image = hub.image(REPO, "1", [layer])
    program = Program(tmp_path, hub, {"hubcache_workers": workers})
    start = program.command.index("--mode")
    program.command = [str(environment / "bin/hubcache"), "serve", *program.command[start:]]
    confdir = program.command.index(f"confdir={program.confdir}")
    del program.command[confdir - 1 : confdir + 1]
    home = tmp_path / "home"
    home.mkdir()
    program.environment = {"HOME": str(home), "XDG_DATA_HOME": ""}
    program.confdir = home / ".local/share/hubcache/ca"
    monkeypatch.chdir(home)
    program.start()
    try:
        for listener in ("mirror", "proxy"):
            client = program.client(listener)
            assert client.manifest("1", repo=REPO).body == image.manifest
            assert client.blob(image.layers[0], repo=REPO).body == layer
        assert program.health["version"] == version()
        setup = program.client("mirror").request("GET", "/setup/attach", host=HUB_HOST)
        assert b"#!/bin/sh" in setup.body
        processes = processes_of(program)
        assert len(processes) == {"1": 1, "2": 3}[workers]
        for process in processes:
            command = Path(f"/proc/{process}/cmdline").read_text()
            assert str(environment) in command
            assert str(ADDON) not in command
        report = run(environment / "bin/hubcache", "status", "--dir", program.store, cwd=home)
        assert version() in report
    finally:
        program.stop()
    program.assert_no_errors()
