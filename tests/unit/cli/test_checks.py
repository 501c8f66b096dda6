"""The checks of `hubcache doctor` that need no network: each with one thing broken."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hubcache.cli.checks import certificate, diagnosis, engines, network, program, registry, storage
from hubcache.cli.checks.finding import Finding, State
from hubcache.cli.checks.http_client import token_url
from hubcache.cli.checks.target import Target, reachable_host
from hubcache.oci.image_name import ImageName
from hubcache.operate import ca
from support.cli import status_report

NOW = datetime.now(UTC)


def target(report: dict[str, Any] | None = None, **values: Any) -> Target:
    """A cache of which only the report, and what a test names, is known."""
    return Target(ImageName.parse("hello-world"), report=report, **values)


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    assert (finding.state in (State.OK, State.SKIPPED)) is (finding.advice == "")
    return finding


class TestProgram:
    """Versions, limits and the report of the cache itself."""

    def test_sound_program_has_no_findings_to_act_on(self) -> None:
        for check in (program.check_versions, program.check_outbound_proxy, program.check_descriptors):
            assert only(check(target(status_report()))).state is State.OK
        assert list(program.check_report(target(status_report()))) == []

    def test_other_version_is_a_warning(self) -> None:
        found = only(program.check_versions(target(status_report(version="0.9"))))
        assert (found.state, found.text.startswith("the cache runs version 0.9, ")) == (State.WARNING, True)

    def test_untested_mitmproxy_is_a_warning(self) -> None:
        report = status_report()
        report["process"]["untested"] = "mitmproxy 14 is not tested with this version"
        found = only(program.check_versions(target(report)))
        assert found.state is State.WARNING
        assert "mitmproxy 14 is not tested" in found.text

    @pytest.mark.parametrize(
        ("limit", "used", "state"),
        [(65536, 100, State.OK), (1024, 100, State.WARNING), (65536, 65000, State.PROBLEM), (65536, None, State.OK)],
    )
    def test_low_limit_of_descriptors_is_found(self, limit: int, used: int | None, state: State) -> None:
        report = status_report()
        report["process"]["descriptors"] = {"limit": limit, "open": used}
        assert only(program.check_descriptors(target(report))).state is state

    def test_proxy_of_this_shell_that_the_cache_lacks_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:3128")
        report = status_report()
        found = only(program.check_outbound_proxy(target(report)))
        assert (found.state, "secret" in found.text) == (State.WARNING, False)
        report["process"]["outbound_proxy"] = "http://proxy:3128"
        assert only(program.check_outbound_proxy(target(report))).state is State.OK

    def test_problems_and_upstreams_of_the_report_are_repeated(self) -> None:
        upstreams = [
            {"registry": "ghcr.io", "is_up": False, "reason": "status 503"},
            {"registry": "quay.io", "is_up": True, "reason": None},
        ]
        problems = ["ghcr.io does not answer: status 503. Wait.", "2 objects were damaged."]
        found = list(program.check_report(target(status_report(problems=problems, upstreams=upstreams))))
        assert [(each.state, each.text) for each in found] == [
            (State.PROBLEM, "ghcr.io is down: status 503"),
            (State.WARNING, "2 objects were damaged."),
        ]
        found = list(program.check_report(target(status_report(upstreams=upstreams[1:]))))
        assert [(each.state, each.text) for each in found] == [(State.OK, "quay.io: no failures")]


class TestOptionsFile:
    """The options file, as the cache would read it."""

    @staticmethod
    def check(path: Path, **changes: Any) -> Finding:
        report = status_report(**changes)
        report["process"]["config_file"] = str(path)
        return only(program.check_options_file(target(report)))

    def test_missing_file_is_sound(self, tmp_path: Path) -> None:
        assert self.check(tmp_path / "hubcache.yaml").state is State.OK

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("sise: 50G\n", "sise is not an option; did you mean size?"),
            ("size: big\n", "hubcache_size: 'big' is not a size above 0"),
            ("size: [\n", "hubcache.yaml"),
        ],
    )
    def test_file_with_an_error_is_a_problem(self, tmp_path: Path, text: str, words: str) -> None:
        path = tmp_path / "hubcache.yaml"
        path.write_text(text)
        found = self.check(path)
        assert (found.state, words in found.text) == (State.PROBLEM, True)

    def test_file_that_was_changed_after_the_start_is_a_warning(self, tmp_path: Path) -> None:
        path = tmp_path / "hubcache.yaml"
        path.write_text("size: 50G\n")
        found = self.check(path, started=path.stat().st_mtime - 10)
        assert (found.state, "after the start of the cache" in found.text) == (State.WARNING, True)
        assert self.check(path, started=path.stat().st_mtime + 10).state is State.OK

    def test_file_is_checked_while_the_cache_does_not_run(self) -> None:
        path = Path(os.environ["HOME"]) / ".mitmproxy/hubcache.yaml"
        path.parent.mkdir()
        path.write_text("sise: 50G\n")
        assert only(program.check_options_file(target())).state is State.PROBLEM


class TestCertificate:
    """The CA certificate."""

    @staticmethod
    def authority(directory: Path, hosts: list[str], now: datetime) -> Path:
        ca.ensure_ca(directory, hosts, now)
        return directory / ca.CERTIFICATE_FILE

    def check(self, path: Path, report: dict[str, Any] | None = None) -> Finding:
        return only(certificate.check_certificate(target(report, ca_file=path)))

    def test_new_certificate_is_sound_and_remembered(self, tmp_path: Path) -> None:
        path = self.authority(tmp_path, ["registry-1.docker.io"], NOW)
        checked = target(ca_file=path)
        found = only(certificate.check_certificate(checked))
        assert (found.state, checked.ca_pem) == (State.OK, path.read_bytes())
        assert found.text.endswith("and signs for docker.com, docker.io")

    @pytest.mark.parametrize(
        ("created", "state", "words"),
        [
            (NOW - ca.VALIDITY + timedelta(days=20), State.WARNING, " expires in 19 days"),
            (NOW + timedelta(days=3), State.PROBLEM, " which is in the future"),
        ],
    )
    def test_validity_is_checked(self, tmp_path: Path, created: datetime, state: State, words: str) -> None:
        ca._create(tmp_path, ["docker.io"], created)
        key = (tmp_path / ca.KEY_FILE).read_bytes()
        path = tmp_path / ca.CERTIFICATE_FILE
        path.write_bytes(x509.load_pem_x509_certificates(key)[0].public_bytes(Encoding.PEM))
        found = self.check(path)
        assert (found.state, words in found.text) == (state, True), found.text

    def test_expired_certificate_is_a_problem(self, tmp_path: Path) -> None:
        ca._create(tmp_path, ["docker.io"], NOW - ca.VALIDITY - timedelta(days=1))
        assert " expired on " in self.check(tmp_path / ca.KEY_FILE).text

    def test_certificate_that_cannot_sign_for_the_registry_is_a_problem(self, tmp_path: Path) -> None:
        found = self.check(self.authority(tmp_path, ["ghcr.io"], NOW))
        assert found.state is State.PROBLEM
        assert found.text.endswith("cannot sign for registry-1.docker.io, only for ghcr.io")

    def test_deleted_certificate_is_a_problem_while_the_cache_runs(self, tmp_path: Path) -> None:
        assert self.check(tmp_path / "none", status_report()).state is State.PROBLEM
        assert self.check(tmp_path / "none").state is State.SKIPPED

    def test_file_without_a_certificate_is_a_problem(self, tmp_path: Path) -> None:
        (tmp_path / "ca").write_text("no certificate")
        assert self.check(tmp_path / "ca").text.endswith("contains no certificate")

    def test_certificate_for_all_hosts_is_a_warning(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = self.authority(tmp_path, ["ghcr.io"], NOW)
        monkeypatch.setattr(ca, "_constraints_of", lambda _: None)
        found = self.check(path)
        assert (found.state, "can sign for any host" in found.text) == (State.WARNING, True)


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
