"""The checks of `hubcache doctor` of the program, its options and its certificate: each with one thing broken."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hubcache.cli.checks import certificate, program
from hubcache.cli.checks.finding import Finding, State
from hubcache.operate import ca
from support.checks import only, target
from support.cli import status_report

NOW = datetime.now(UTC)


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
