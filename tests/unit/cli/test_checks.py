"""The checks of `hubcache doctor` of the store, the engines and registries: each with one thing broken."""

import os
from pathlib import Path
from typing import Any

import pytest
from hubcache.cli.checks import diagnosis, engines, network, registry, storage
from hubcache.cli.checks.finding import State
from hubcache.cli.checks.http_client import token_url
from hubcache.cli.checks.target import reachable_host
from hubcache.oci.image_name import ImageName
from support.checks import target
from support.cli import status_report


class TestStorage:
    """The store and its disk."""

    @pytest.fixture
    def report(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """The report of a cache on a disk of 100 GiB, of which 60 GiB are free."""
        report = status_report()
        report["store"] |= {"directory": str(tmp_path), "bytes": 0}
        self.disk(monkeypatch)
        return report

    @staticmethod
    def disk(patch: pytest.MonkeyPatch, total: int = 100 << 30, free: int = 60 << 30, inodes: int = 1 << 20) -> None:
        blocks = [4096, 4096, total // 4096, free // 4096, free // 4096, 1 << 20, inodes, inodes, 0, 255]
        patch.setattr(os, "statvfs", lambda _: os.statvfs_result(blocks))

    def test_sound_store(self, report: dict[str, Any]) -> None:
        assert [each.state for each in storage.check_store(target(report))] == [State.OK, State.OK]

    def test_unusable_store_is_a_problem(self, report: dict[str, Any]) -> None:
        report["store"]["problem"] = "disk is full"
        found = next(iter(storage.check_store(target(report))))
        assert (found.state, found.text) == (State.PROBLEM, "nothing is stored: disk is full")

    @pytest.mark.parametrize(
        ("disk", "words"),
        [
            ({"total": 40 << 30}, "hubcache_size is 50.0 GiB, but the file system of the store has 40.0 GiB"),
            ({"free": 40 << 30}, "the store may still grow by 50.0 GiB, but 40.0 GiB are free"),
            ({"free": 100 << 20}, "only 100.0 MiB of 100.0 GiB are free: the store shrinks"),
            ({"inodes": 5}, "only 5 inodes are free"),
        ],
    )
    def test_small_disk_is_a_warning(
        self, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch, disk: dict[str, int], words: str
    ) -> None:
        self.disk(monkeypatch, **disk)
        warnings = [each.text for each in storage.check_store(target(report)) if each.state is State.WARNING]
        assert warnings == [words]

    def test_directory_that_vanished_is_a_problem(
        self, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        report["store"]["directory"] += "/none"
        found = list(storage.check_store(target(report)))[-1]
        assert (found.state, "cannot be examined" in found.text) == (State.PROBLEM, True)


class TestEngines:
    """The container engines of a client's machine."""

    @pytest.fixture
    def root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A machine without engines."""
        monkeypatch.setenv(engines.ROOT, str(tmp_path))
        monkeypatch.setattr("shutil.which", lambda _: None)
        return tmp_path

    @staticmethod
    def check() -> list[tuple[str, State]]:
        remote = target(host="cache.lan", mirror_port=5000, proxy_port=8080, is_remote=True)
        return [(each.check, each.state) for each in engines.check_engines(remote)]

    def test_machine_without_engines_is_skipped(self, root: Path) -> None:
        assert self.check() == [("engines", State.SKIPPED)]

    def test_each_engine_is_judged_by_its_files(self, root: Path) -> None:
        for name, text in {
            "etc/docker/daemon.json": '{"registry-mirrors": ["http://cache.lan:5000"]}',
            "etc/containerd/certs.d/docker.io/hosts.toml": '[host."http://other:5000"]',
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        assert self.check() == [("docker", State.OK), ("containerd", State.WARNING)]

    def test_installed_engine_without_files_is_not_attached(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda name: "/bin/podman" if name == "podman" else None)
        assert self.check() == [("podman", State.WARNING)]


class TestRegistry:
    """The registry as the cache reaches it."""

    @staticmethod
    def findings(**changes: Any) -> list[tuple[str, State]]:
        steps = [{"step": "token", "error": None, "seconds": 0.1}]
        probe = {"steps": steps, "ratelimit": None, "date": None, "proxy": None} | changes
        return [(each.check, each.state) for each in registry.findings(probe, "registry-1.docker.io")]

    def test_answer_is_sound(self) -> None:
        assert self.findings() == [("registry", State.OK)]

    def test_failed_step_is_a_problem(self) -> None:
        step = {"step": "manifest", "error": "no answer", "seconds": None}
        assert self.findings(steps=[step]) == [("registry", State.PROBLEM)]

    @pytest.mark.parametrize(("remaining", "state"), [(90, State.OK), (10, State.WARNING), (0, State.PROBLEM)])
    def test_low_rate_limit_is_found(self, remaining: int, state: State) -> None:
        limit = {"limit": "100;w=21600", "remaining": f"{remaining};w=21600"}
        assert self.findings(ratelimit=limit) == [("registry", State.OK), ("rate limit", state)]

    @pytest.mark.parametrize("limit", [{}, {"limit": "100"}, {"limit": "many", "remaining": "-1"}])
    def test_malformed_rate_limit_is_no_finding(self, limit: dict[str, str]) -> None:
        assert self.findings(ratelimit=limit) == [("registry", State.OK)]

    @pytest.mark.parametrize(
        ("now", "state", "words"),
        [
            (784111777.0, State.OK, "it agrees with the registry"),
            (784111777.0 + 3600, State.PROBLEM, "this machine is 1 h ahead of the registry"),
            (784111777.0 - 120, State.PROBLEM, "this machine is 2 min behind the registry"),
        ],
    )
    def test_wrong_clock_is_a_problem(self, now: float, state: State, words: str) -> None:
        found = network.clock_finding("Sun, 06 Nov 1994 08:49:37 GMT", now, "the registry")
        assert found is not None
        assert (found.state, found.text) == (state, words)

    @pytest.mark.parametrize("date", [None, "", "yesterday"])
    def test_missing_date_is_no_finding(self, date: str | None) -> None:
        assert network.clock_finding(date, 0.0, "the registry") is None


@pytest.mark.parametrize(
    ("challenge", "expected"),
    [
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"',
            ("auth.docker.io", "/token?service=registry.docker.io&scope=repository%3Aa%2Fb%3Apull"),
        ),
        ('Bearer realm="https://auth:5000/token?a=b"', ("auth:5000", "/token?a=b")),
        ('Basic realm="x"', None),
        ("", None),
    ],
)
def test_token_url_is_that_of_the_challenge(challenge: str, expected: tuple[str, str] | None) -> None:
    assert token_url(challenge) == expected


@pytest.mark.parametrize(
    ("host", "reachable"), [("", "127.0.0.1"), ("::", "127.0.0.1"), ("10.0.0.1", "10.0.0.1"), ("0.0.0.0", "127.0.0.1")]
)
def test_listener_on_all_addresses_is_reached_at_loopback(host: str, reachable: str) -> None:
    assert reachable_host(host) == reachable


def test_image_of_another_registry_is_pulled_where_docker_hub_is_not_cached() -> None:
    hub, other = ImageName.parse("hello-world"), ImageName.parse("ghcr.io/o/n:1")
    report = status_report(images=[{"name": "ghcr.io/o/n:1"}])
    report["process"]["registries"] = ["ghcr.io"]
    assert diagnosis._image_of(report, hub) == other
    assert diagnosis._image_of(report | {"images": []}, hub) == hub
    report["process"]["registries"] = ["registry-1.docker.io"]
    assert diagnosis._image_of(report, hub) == hub


@pytest.mark.parametrize("text", ["size: [\n", "status: nonsense\n"])
def test_malformed_options_file_does_not_end_the_diagnosis(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "STATUS_ADDRESS", "127.0.0.1:1")
    path = Path(os.environ["HOME"]) / ".mitmproxy/hubcache.yaml"
    path.parent.mkdir()
    path.write_text(text)
    assert diagnosis._status_page("/healthz") is None


@pytest.mark.parametrize("page", [None, {}, {"status": "ok", "store": "none"}])
def test_other_program_at_the_status_port_is_no_cache(
    page: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "_status_page", lambda _: page)
    found = diagnosis._without_socket(target(), tmp_path, "no cache runs")
    assert (found.state, found.text, found.advice[:9]) == (State.PROBLEM, "no cache runs", "start it:")
