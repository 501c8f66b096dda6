"""scripts/test and its summary, with stand-ins for its programs."""

import re
import subprocess
import sys

from support.checkout import BASH, SCRIPTS, Checkout, checkout_fixture, program

checkout = checkout_fixture()

PROGRAMS = re.findall(r'^    "(\S+) ', (SCRIPTS / "test").read_text(), re.MULTILINE)
"""Programs that scripts/test installs when they are missing."""

REPORT = """<testsuites><testsuite>
<testcase file="tests/a.py" classname="tests.a" name="test_fast" time="0.5"/>
<testcase file="tests/a.py" classname="tests.a.TestB" name="test_slow[1]" time="9.25"/>
<testcase file="tests/a.py" classname="tests.a" name="test_skipped" time="0"><skipped/></testcase>
FAILURE</testsuite></testsuites>"""
FAILURE = """<testcase file="tests/a.py" classname="tests.a" name="test_bad" time="1">
<failure message="AssertionError: 1&#10;2"/></testcase>"""
WRITES_REPORT = """for argument; do [[ $argument != --junit-xml=* ]] || printf %s 'REPORT' >"${argument#*=}"; done"""


class TestTest:
    """scripts/test, whose programs are stand-ins."""

    def run(
        self, checkout: Checkout, *arguments: str, uv_fails: str = "", **failing: int
    ) -> tuple[int, list[str], str]:
        """Return exit status, the lines printed and the messages; `failing` are exit statuses of programs."""
        checkout.prepare("dev")
        for venv in (".venv", ".uv/newest"):
            for name in ("ruff", "mypy", "pytest"):
                status = failing.get(name, 0)
                body = f'echo "ran {name} $1"; exit {status}'
                if name == "pytest" and status < 2:  # with a higher status pytest ended without running tests
                    report = REPORT.replace("FAILURE", FAILURE if status else "")
                    body = WRITES_REPORT.replace("REPORT", report) + "\n" + body
                program(checkout.root / venv / "bin" / name, body)
        (checkout.root / ".venv/bin/python").unlink()
        (checkout.root / ".venv/bin/python").symlink_to(sys.executable)
        checkout.restamp()
        for name in PROGRAMS:
            program(checkout.directory / "bin" / name, "exit 0")
        command = [BASH, str(checkout.root / "scripts/test"), *arguments]
        environment = checkout.environment | {"UV_FAILS": uv_fails}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.split("\n")[:-1], done.stderr

    def test_all_stages_run_and_the_summary_counts_tests(self, checkout: Checkout) -> None:
        code, lines, messages = self.run(checkout)
        ran = [line for line in lines if line.startswith("ran ")]
        assert (code, ran) == (
            0,
            ["ran ruff check", "ran ruff format", "ran mypy ", "ran pytest -m", "ran pytest -n", "ran pytest -m"],
        ), messages
        assert lines[6] == "slowest tests:"
        assert lines[7] == "     9.2 s  tests/a.py::TestB::test_slow[1]"
        stages = [line.rsplit("  ", 1)[0].split() for line in lines if re.search(r"\d s$", line) and "::" not in line]
        assert stages == [
            ["style", "ok"],
            ["format", "ok"],
            ["types", "ok"],
            ["fast", "tests", "ok", "2", "0", "1"],
            ["with", "two", "workers", "ok", "2", "0", "1"],
            ["end-to-end", "tests", "ok", "2", "0", "1"],
        ]
        assert "failed:" not in lines

    def test_stages_after_a_failed_one_run_and_the_failure_is_repeated_at_the_end(self, checkout: Checkout) -> None:
        code, lines, _ = self.run(checkout, mypy=2, pytest=1)
        assert (code, len([line for line in lines if line.startswith("ran ")])) == (1, 6)
        assert lines[lines.index("failed:") :] == [
            "failed:",
            "  types: exit status 2, see above",
            *("  fast tests", "    tests/a.py::test_bad: AssertionError: 1"),
            *("  with two workers", "    tests/a.py::test_bad: AssertionError: 1"),
            *("  end-to-end tests", "    tests/a.py::test_bad: AssertionError: 1"),
        ]

    def test_stage_without_a_report_is_a_failure(self, checkout: Checkout) -> None:
        code, lines, _ = self.run(checkout, "tests/a.py", pytest=3)
        assert (code, lines[-1]) == (1, "  chosen tests: exit status 3, see above")

    def test_newest_runs_the_fast_stages_in_a_separate_environment(self, checkout: Checkout) -> None:
        code, lines, messages = self.run(checkout, "--newest")
        ran = [line for line in lines if line.startswith("ran ")]
        assert (code, ran) == (0, ["ran ruff check", "ran ruff format", "ran mypy ", "ran pytest -m"]), messages
        newest = checkout.root / ".uv/newest"
        assert (
            f"pip install --upgrade --compile-bytecode --python {newest}/bin/python "
            "--requirements pyproject.toml --group dev"
        ) in checkout.calls.read_text()
        assert [line for line in messages.splitlines() if "ruff==" in line] == ["locked: ruff==1", "newest: ruff==2"]
        assert checkout.lock.read_text() == "one\n"

    def test_failed_installation_of_the_newest_releases_is_one_line(self, checkout: Checkout) -> None:
        code, lines, messages = self.run(checkout, "--newest", uv_fails="no network")
        assert (code, lines) == (1, [])
        assert messages.splitlines()[-1].startswith("hubcache: failed: installing the newest releases: error: ")
