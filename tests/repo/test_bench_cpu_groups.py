"""scripts/bench: limits of CPU time by control groups of the kernel."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from benchlib import cpu_groups
from benchlib.certificates import Certificates
from benchlib.clients import download
from benchlib.cpu_groups import CpuGroup, Periods, cpu_group, find_hierarchy, limit
from benchlib.fleet import MACHINE_CORES, NODES, REST_CORES, hubcache_fleet_limited, hubcache_limited
from benchlib.images import Images
from benchlib.processes import BenchError
from benchlib.server import Server, Setup
from benchlib.upstream import Upstream
from support.http_client import wait_until
from support.required import require

BUSY = ("sh", "-c", "while :; do :; done")
ABSENT = 999_999_999
"""No process has this id: it is larger than the largest one on Linux."""

V1 = """\
24 1 0:22 / /sys rw - sysfs sysfs rw
30 24 0:26 / {unified} rw,relatime - cgroup2 cgroup2 rw
31 24 0:27 /docker/a {root} rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
"""
V2 = "30 24 0:26 / {root} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


def make_group(stack: ExitStack) -> CpuGroup:
    """Return a group that may use a tenth of a core; skips the test where the kernel permits none to this user."""
    try:
        return stack.enter_context(cpu_group("test", 0.1))
    except BenchError as error:
        pytest.skip(f"no control groups can be made here: {error}")


def start(stack: ExitStack, *command: str) -> subprocess.Popen[bytes]:
    process = stack.enter_context(subprocess.Popen(command))
    stack.callback(process.kill)
    return process


def test_program_of_a_group_may_not_use_more_than_the_quota(stack: ExitStack) -> None:
    group = make_group(stack)
    before = group.periods()
    process = start(stack, *group.prefix, *BUSY)
    wait_until(lambda: group.periods().throttled >= before.throttled + 3)
    assert group.processes() == [process.pid], "the program has another process id"
    assert group.periods().percent_since(before) > 0


def test_processes_that_remain_are_killed_and_the_group_is_removed_also_after_a_failure(stack: ExitStack) -> None:
    def fail(measuring: ExitStack) -> None:
        with measuring:
            raise KeyError

    measuring = ExitStack()
    group = make_group(measuring)
    process = start(stack, *group.prefix, *BUSY)
    wait_until(group.processes)
    with pytest.raises(KeyError):
        fail(measuring)
    assert process.wait(10) == -signal.SIGKILL
    assert not group.directory.exists()


def test_running_processes_are_moved_and_are_moved_back(stack: ExitStack) -> None:
    group = make_group(stack)
    process = start(stack, "sleep", "60")
    with ExitStack() as measuring:
        measuring.enter_context(pytest.raises(KeyError))
        measuring.enter_context(group.containing([process.pid, ABSENT]))
        assert group.processes() == [process.pid]
        raise KeyError
    assert group.processes() == []
    assert process.poll() is None
    assert process.pid in CpuGroup(find_hierarchy().own).processes()


def test_group_of_a_benchmark_that_was_killed_is_removed(stack: ExitStack) -> None:
    group = make_group(stack)
    leftover = group.directory.with_name(f"hubcache-bench-{ABSENT}-of-{os.getpid()}")
    leftover.mkdir()
    with cpu_group("other", 0.1) as other:
        assert not leftover.exists()
        assert other.directory.exists()
    assert group.directory.exists(), "the group of a benchmark that runs was removed"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_hierarchy_of_version_1_is_found(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    write(tmp_path / "unified" / "cgroup.controllers", "hugetlb\n")
    root = tmp_path / "cpu"
    mounts = write(tmp_path / "mounts", V1.format(root=root, unified=tmp_path / "unified"))
    groups = write(tmp_path / "groups", "9:name=systemd:/x\n1:cpu,cpuacct:/docker/a/b\n0::/y\n")
    found = find_hierarchy(mounts, groups)
    assert (found.root, found.version, found.own) == (root, 1, root / "b")


def test_hierarchy_of_version_2_is_found(tmp_path: Path) -> None:
    write(tmp_path / "cgroup.controllers", "cpuset cpu io\n")
    mounts = write(tmp_path / "mounts", V2.format(root=tmp_path))
    found = find_hierarchy(mounts, write(tmp_path / "groups", "0::/user.slice\n"))
    assert (found.root, found.version, found.own) == (tmp_path, 2, tmp_path / "user.slice")


def test_absence_of_the_cpu_controller_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "cgroup.controllers", "memory\n")
    mounts = write(tmp_path / "mounts", V2.format(root=tmp_path))
    with pytest.raises(BenchError, match="CPU quotas cannot be set here: no control groups"):
        find_hierarchy(mounts, write(tmp_path / "groups", "0::/\n"))


@pytest.mark.parametrize(
    ("version", "files"),
    [
        (1, {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "3500", "cpu.shares": "102400"}),
        (2, {"cpu.max": "3500 10000", "cpu.weight": "10000"}),
    ],
)
def test_quota_is_written_as_the_kernel_reads_it(tmp_path: Path, version: int, files: dict[str, str]) -> None:
    limit(tmp_path, version, 0.35)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == files


def test_quota_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="CPU quotas cannot be set here"):
        limit(tmp_path / "absent", 1, 0.35)


def test_percentage_of_throttled_periods_is_that_of_the_periods_since() -> None:
    assert Periods(30, 12).percent_since(Periods(10, 2)) == 50
    assert Periods(10, 2).percent_since(Periods(10, 2)) == 0


def test_machines_and_the_rest_have_all_cores_together() -> None:
    assert pytest.approx(os.cpu_count()) == NODES * MACHINE_CORES + REST_CORES
    assert REST_CORES > 0


def test_nothing_is_measured_where_no_quota_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise BenchError("CPU quotas cannot be set here: no groups")

    monkeypatch.setattr(cpu_groups, "find_hierarchy", fail)
    upstream = Upstream(Images(tmp_path), "", "", tmp_path, 1)
    setup = Setup(tmp_path, upstream, Certificates(*[tmp_path] * 4), tmp_path, (), tmp_path, 1, None)
    for server in (hubcache_limited, hubcache_fleet_limited):
        with pytest.raises(BenchError, match="CPU quotas cannot be set here"), server(setup):
            pytest.fail("a server was started without a quota")
    assert list(tmp_path.iterdir()) == []


def test_client_runs_in_the_machine_of_its_server(tmp_path: Path) -> None:
    require("curl")
    (tmp_path / "a").write_bytes(b"content")
    machine = CpuGroup(tmp_path / "machine")  # no control group: the client's process id remains in its file
    machine.directory.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        try:
            origin = f"http://127.0.0.1:{listening.server_port}"
            (done,) = download(Server("a", 1, origin, "", tmp_path, machine=machine), [["/a"]])
        finally:
            listening.shutdown()
            thread.join()
    assert done.bytes == len(b"content")
    assert len(machine.processes()) == 1
