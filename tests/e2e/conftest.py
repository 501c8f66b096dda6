"""Fixtures of the end-to-end tests: one upstream per run, and a new program and new clients for each test."""

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from support.e2e.client_settings import ClientSettings
from support.e2e.clients import Containerd, Docker, Podman, Skopeo
from support.e2e.mounts import mount_memory, unmount
from support.e2e.seaweedfs import SeaweedFS, running_seaweedfs
from support.e2e.upstream import Upstream, running_upstream
from support.program import LISTENERS, Program
from support.standin import Hub


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of all daemons to the report of a failed test."""
    report = yield
    arguments = getattr(item, "funcargs", {})
    workspace = arguments["fleet"].directory if "fleet" in arguments else arguments.get("workspace")
    if report.failed and workspace is not None:
        for log in sorted(workspace.rglob("*.log")):
            report.sections.append((log.name, log.read_text(errors="replace")[-12_000:]))
    return report


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The Hub with images of a real registry."""
    with tempfile.TemporaryDirectory(prefix="hc-upstream-") as workspace, running_upstream(Path(workspace)) as running:
        yield running


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """An object store for the buckets of all fleets."""
    with running_seaweedfs() as running:
        yield running


@pytest.fixture
def hub(upstream: Upstream) -> Iterator[Hub]:
    """The Hub without faults and with an empty log; the test fails if a client did what no client may do."""
    upstream.hub.reset_log()
    yield upstream.hub
    upstream.hub.faults.clear()
    upstream.hub.start()
    violations, upstream.hub.violations = upstream.hub.violations, []
    assert violations == []


@pytest.fixture
def workspace() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets, removed afterwards with all mounts in it."""
    directory = Path(tempfile.mkdtemp(prefix="hc-"))
    mount_memory(directory)
    yield directory
    unmount(directory)
    shutil.rmtree(directory)


@pytest.fixture
def programs(workspace: Path, hub: Hub) -> Iterator[Callable[..., Program]]:
    """Starts a program with these options and an empty store, in a directory of this name in the workspace."""
    started: list[Program] = []

    def start(name: str, **options: str) -> Program:
        # Tags stay fresh for longer than a test, so that a warm pull needs no request upstream.
        defaults = {"hubcache_tag_ttl": "600", "hubcache_workers": "auto"}
        program = Program(workspace / name, hub, defaults | options)
        started.append(program)
        program.start()
        return program

    yield start
    for program in started:
        program.stop()
        program.assert_no_errors()


@pytest.fixture
def options() -> dict[str, str]:
    """Options of the fixture `program`; a test module overrides this fixture."""
    return {}


@pytest.fixture
def program(programs: Callable[..., Program], options: dict[str, str]) -> Program:
    """A running program with an empty store."""
    return programs("program", **options)


@pytest.fixture(params=LISTENERS)
def settings(request: pytest.FixtureRequest, program: Program, workspace: Path) -> ClientSettings:
    """Settings of clients for each listener in turn."""
    return ClientSettings(request.param, program, workspace)


@pytest.fixture
def proxy_settings(program: Program, workspace: Path) -> ClientSettings:
    """Settings of clients that use the proxy, for tests that concern it alone."""
    return ClientSettings("proxy", program, workspace)


@pytest.fixture
def dockers(workspace: Path) -> Iterator[Callable[..., Docker]]:
    """Starts a dockerd with these settings, or with other mirror arguments."""
    started: list[Docker] = []

    def start(settings: ClientSettings, *arguments: str) -> Docker:
        docker = Docker(workspace, settings, arguments or None)
        started.append(docker)
        return docker

    yield start
    for docker in started:
        docker.stop()


@pytest.fixture
def docker(dockers: Callable[..., Docker], settings: ClientSettings) -> Docker:
    """A dockerd, once for each listener."""
    return dockers(settings)


@pytest.fixture
def proxy_docker(dockers: Callable[..., Docker], proxy_settings: ClientSettings) -> Docker:
    """A dockerd with HTTPS_PROXY."""
    return dockers(proxy_settings)


@pytest.fixture
def containerd(workspace: Path, settings: ClientSettings) -> Iterator[Containerd]:
    """A containerd, once for each listener."""
    running = Containerd(workspace, settings)
    yield running
    running.stop()


@pytest.fixture
def podman(workspace: Path, settings: ClientSettings) -> Podman:
    """A podman, once for each listener."""
    return Podman(workspace, settings)


@pytest.fixture
def skopeo(workspace: Path, settings: ClientSettings) -> Skopeo:
    """A skopeo, once for each listener."""
    return Skopeo(workspace, settings)


@pytest.fixture
def proxy_skopeo(workspace: Path, proxy_settings: ClientSettings) -> Skopeo:
    """A skopeo with HTTPS_PROXY."""
    return Skopeo(workspace, proxy_settings)
