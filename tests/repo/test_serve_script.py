"""scripts/serve, scripts/hubcache and the set-up that they share with scripts/test."""

import os
import pty
import re
import shutil
import signal
import subprocess
import time

import pytest
from support.checkout import BASH, SERVES, WORKS, Checkout, checkout_fixture, program

checkout = checkout_fixture()


class TestServe:
    """Set-up by scripts/serve before the program runs."""

    def test_first_start_sets_up_and_passes_its_arguments_on(self, checkout: Checkout) -> None:
        status, output, messages = checkout.serve("--set", "hubcache_dir=/a b", "-q")
        assert (status, output) == (0, "hubcache.cli 4 serve --set hubcache_dir=/a b -q\n")
        assert messages.splitlines() == [
            f"hubcache: making .venv with {checkout.python}",
            "hubcache: reading uv.lock",
            "hubcache: installing the locked dependencies",
        ]

    def test_second_start_does_no_set_up(self, checkout: Checkout) -> None:
        checkout.serve()
        calls = checkout.calls.read_text()
        status, output, messages = checkout.serve("--web", "-q")
        assert (status, messages) == (0, "")
        assert output == "hubcache.cli 3 serve --web -q\n"
        assert checkout.calls.read_text() == calls

    def test_link_from_another_directory_works_with_stdin_closed(self, checkout: Checkout) -> None:
        link = checkout.directory / "links/hubcache"
        link.parent.mkdir()
        link.symlink_to("../repository/scripts/serve")
        command = [BASH, "-c", "links/hubcache -q <&-"]
        done = subprocess.run(
            command, env=checkout.environment, cwd=checkout.directory, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == "hubcache.cli 2 serve -q\n"

    def test_changed_lock_file_is_installed(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.lock.write_text("two\n")
        assert checkout.serve()[0] == 0
        assert checkout.installs() == 2

    def test_moved_repository_needs_no_set_up(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.root = checkout.root.rename(checkout.directory / "moved")
        assert checkout.serve()[1:] == (SERVES, "")

    def test_python_that_was_removed_is_replaced(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.python.unlink()
        checkout.python = program(checkout.directory / "bin/python3.12", WORKS)
        assert checkout.serve()[0] == 0
        assert checkout.installs() == 2

    def test_another_hubcache_python_makes_another_environment(self, checkout: Checkout) -> None:
        checkout.serve()
        chosen = program(checkout.directory / "chosen", WORKS)
        for _ in range(2):
            assert checkout.serve(HUBCACHE_PYTHON=str(chosen))[0] == 0
        assert checkout.installs() == 2

    def test_failed_set_up_prints_its_reason_in_one_line_and_keeps_the_environment(self, checkout: Checkout) -> None:
        checkout.serve()
        checkout.lock.write_text("two\n")
        status, output, messages = checkout.serve(UV_FAILS="no network")
        assert (status, output) == (1, "")
        assert re.fullmatch(
            r"hubcache: failed: installing the locked dependencies: error: .*\(.*setup\.log\)",
            messages.splitlines()[-1],
        )
        checkout.lock.write_text("one\n")
        assert checkout.serve() == (0, SERVES, "")

    @pytest.mark.parametrize(
        ("output", "advice"),
        [
            ("cause: invalid peer certificate: UnknownIssuer", "set SSL_CERT_FILE to a PEM file with its CA"),
            ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "or UV_SYSTEM_CERTS=1 when"),
            ("failed to write: No space left on device (os error 28)", "no space left: free 500 MB in "),
            ("failed to create directory: Permission denied (os error 13)", "run this as the owner of "),
            ("cause: failed to lookup address information", "check the network, or set HTTPS_PROXY"),
        ],
    )
    def test_failed_set_up_says_what_to_do(self, checkout: Checkout, output: str, advice: str) -> None:
        status, _, messages = checkout.serve(UV_FAILS=output)
        last = messages.splitlines()[-1]
        assert status == 1
        assert last.startswith("hubcache: failed: installing the locked dependencies: error: no way; ")
        assert advice in last

    def test_failed_download_of_python_says_how_to_name_one(self, checkout: Checkout) -> None:
        program(checkout.python, "exit 1")
        for name in ("python3.14", "python3.12", "python3.15", "python3"):
            program(checkout.directory / "bin" / name, "exit 1")
        status, _, messages = checkout.serve(UV_FAILS="dns error")
        last = messages.splitlines()[-1]
        assert status == 1
        assert last.startswith("hubcache: failed: no Python >= 3.12 found: downloading 3.13: error: Failed to install;")
        assert "no connection: check the network" in last
        assert "or set HUBCACHE_PYTHON to the path of one" in last

    def test_directory_that_cannot_be_written_is_named_with_the_cause(self, checkout: Checkout) -> None:
        shutil.rmtree(checkout.root / ".uv")
        (checkout.root / ".uv").write_text("a file")
        status, output, messages = checkout.serve()
        (line,) = messages.splitlines()
        assert (status, output) == (1, "")
        assert line.startswith(f"hubcache: cannot set up in {checkout.root}: ")
        assert "File exists" in line

    def test_elapsed_seconds_of_a_step_are_shown_on_a_terminal(self, checkout: Checkout) -> None:
        ours, theirs = pty.openpty()
        with checkout.start(messages=theirs, UV_SLEEP="2.5") as process:
            os.close(theirs)
            shown = b""
            while not re.search(rb"\r  \d+ s", shown):  # at the end of the program, reading raises `OSError`
                shown += os.read(ours, 1000)
            process.communicate(timeout=60)
        os.close(ours)
        assert process.returncode == 0
        # The shell subtracts whole seconds of the clock, so that the first number may be 2 soon after one second.
        assert re.search(rb"hubcache: installing the locked dependencies\r\n\r  [1-9] s", shown)

    def test_two_starts_at_once_set_up_once(self, checkout: Checkout) -> None:
        first, second = checkout.start(UV_SLEEP="1"), checkout.start(UV_SLEEP="1")
        messages = []
        for process in (first, second):
            output, printed = process.communicate(timeout=60)
            assert (process.returncode, output) == (0, SERVES)
            messages.append(printed)
        assert checkout.installs() == 1
        assert sorted(messages)[-1] == "hubcache: waiting for another set-up to end\n"

    def test_killed_set_up_is_repeated(self, checkout: Checkout) -> None:
        killed = checkout.start(UV_SLEEP="60")
        half_made = checkout.root / ".uv/venv/bin/mitmdump"
        limit = time.monotonic() + 30
        while not half_made.exists():
            assert time.monotonic() < limit
            time.sleep(0.02)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate(timeout=60)
        assert checkout.serve()[:2] == (0, SERVES)

    def test_environment_without_a_stamp_is_replaced(self, checkout: Checkout) -> None:
        program(checkout.root / ".venv/bin/mitmdump", "echo wrong")
        program(checkout.root / ".venv/bin/python", WORKS)
        assert checkout.serve()[1].startswith(SERVES)


class TestHubcache:
    """scripts/hubcache, and the help of scripts/serve."""

    def test_command_line_is_set_up_once_and_gets_all_arguments(self, checkout: Checkout) -> None:
        def run(*arguments: str) -> tuple[str, str]:
            command = [BASH, str(checkout.root / "scripts/hubcache"), *arguments]
            done = subprocess.run(command, env=checkout.environment, capture_output=True, text=True, check=True)
            return done.stdout, done.stderr

        output, messages = run("show", "a b")
        assert (output, messages.count("\n")) == ("hubcache.cli 2 show a b\n", 3)
        assert run("--help") == ("hubcache.cli 1 --help\n", "")
        assert checkout.installs() == 1

    def test_help_needs_no_set_up(self, checkout: Checkout) -> None:
        status, output, messages = checkout.serve("--help")
        assert (status, messages) == (0, "")
        assert "--mirror-port N" in output
        assert not (checkout.root / ".venv").exists()


class TestGroups:
    """scripts/serve and scripts/test share one environment."""

    def test_environment_of_the_tests_is_used_to_serve(self, checkout: Checkout) -> None:
        checkout.prepare("dev")
        assert checkout.serve()[2] == ""
        venv = checkout.root / ".uv/venv"
        assert f"export --locked --group dev --python {venv}/bin/python " in checkout.calls.read_text()

    def test_tests_add_to_the_environment_of_serve(self, checkout: Checkout) -> None:
        checkout.serve()
        assert checkout.group() == "serve"
        checkout.prepare("dev")
        assert checkout.group() == "dev"

    def test_demo_of_a_fleet_adds_to_the_environment_of_serve(self, checkout: Checkout) -> None:
        checkout.serve()
        status, output, _ = checkout.serve("--fleet-demo", "3", "--set", "hubcache_size=1G")
        assert (status, output) == (0, "fleetdemo 4 --fleet-demo 3 --set hubcache_size=1G\n")
        assert checkout.group() == "fleet-demo"
        assert "--no-dev --group fleet-demo" in checkout.calls.read_text()
        installs = checkout.installs()
        assert checkout.serve()[1] == SERVES
        assert checkout.serve("--fleet-demo=3")[0] == 0
        assert checkout.installs() == installs
        checkout.lock.write_text("two\n")
        assert checkout.serve()[0] == 0
        assert checkout.group() == "fleet-demo"

    def test_environment_of_the_tests_is_used_for_the_demo_of_a_fleet(self, checkout: Checkout) -> None:
        checkout.prepare("dev")
        installs = checkout.installs()
        assert checkout.serve("--fleet-demo", "2")[0] == 0
        assert checkout.installs() == installs

    def test_serve_keeps_the_group_of_the_tests_when_the_lock_file_changes(self, checkout: Checkout) -> None:
        checkout.prepare("dev")
        checkout.lock.write_text("two\n")
        assert checkout.serve()[0] == 0
        assert checkout.group() == "dev"
