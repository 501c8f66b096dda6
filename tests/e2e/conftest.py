"""Fixtures of the end-to-end tests: upstream once per run; cache and clients anew for each test."""

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from support.lab.clients import Containerd, Docker, Podman, Skopeo
from support.lab.doors import Door
from support.lab.mounts import mount_memory, unmount
from support.lab.origin import Origin, running_origin
from support.lab.product import Cache
from support.standin import Hub


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the long-running programs said to the report of a failed test."""
    report = yield
    room = getattr(item, "funcargs", {}).get("room")
    if report.failed and room is not None:
        for log in sorted(room.glob("*.log")):
            report.sections.append((log.name, log.read_text(errors="replace")[-12_000:]))
    return report


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """The Hub with real images from a real registry."""
    with tempfile.TemporaryDirectory(prefix="hc-origin-") as room, running_origin(Path(room)) as running:
        yield running


@pytest.fixture
def hub(origin: Origin) -> Iterator[Hub]:
    """The Hub in good health and with an empty log; the test fails when a client did what none may do."""
    origin.hub.reset_log()
    yield origin.hub
    origin.hub.faults.clear()
    origin.hub.start()
    violations, origin.hub.violations = origin.hub.violations, []
    assert violations == []


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets, removed afterwards with all that was mounted in it."""
    directory = Path(tempfile.mkdtemp(prefix="hc-"))
    mount_memory(directory)
    yield directory
    unmount(directory)
    shutil.rmtree(directory)


@pytest.fixture
def cache(room: Path, hub: Hub) -> Iterator[Cache]:
    """A running cache with an empty store; see the report of a failed test for what it said."""
    running = Cache(room, hub.url())
    running.start()
    yield running
    running.stop()


@pytest.fixture(params=["proxy", "mirror"])
def door(request: pytest.FixtureRequest, cache: Cache, room: Path) -> Door:
    """Each test that takes it runs once per door."""
    return Door(request.param, cache, room)


@pytest.fixture
def proxy_door(cache: Cache, room: Path) -> Door:
    """The forward proxy, where a test is about nothing else."""
    return Door("proxy", cache, room)


@pytest.fixture
def dockers(room: Path) -> Iterator[Callable[..., Docker]]:
    """Starts a dockerd behind a door, or with arguments of its own."""
    started: list[Docker] = []

    def start(door: Door, *arguments: str) -> Docker:
        docker = Docker(room, door, arguments or None)
        started.append(docker)
        return docker

    yield start
    for docker in started:
        docker.stop()


@pytest.fixture
def docker(dockers: Callable[[Door], Docker], door: Door) -> Docker:
    """A dockerd, once behind each door."""
    return dockers(door)


@pytest.fixture
def proxied_docker(dockers: Callable[[Door], Docker], proxy_door: Door) -> Docker:
    """A dockerd with HTTPS_PROXY."""
    return dockers(proxy_door)


@pytest.fixture
def containerd(room: Path, door: Door) -> Iterator[Containerd]:
    """A containerd, once behind each door."""
    running = Containerd(room, door)
    yield running
    running.stop()


@pytest.fixture
def podman(room: Path, door: Door) -> Podman:
    """podman, once behind each door."""
    return Podman(room, door)


@pytest.fixture
def skopeo(room: Path, door: Door) -> Skopeo:
    """skopeo, once behind each door."""
    return Skopeo(room, door)


@pytest.fixture
def proxied_skopeo(room: Path, proxy_door: Door) -> Skopeo:
    """skopeo with HTTPS_PROXY."""
    return Skopeo(room, proxy_door)
