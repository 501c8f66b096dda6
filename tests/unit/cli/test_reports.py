"""The commands that report: status, top and verify."""

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hubcache.cli import text, top
from hubcache.cli.client import ControlClient
from hubcache.cli.output import Output
from support.cli import DIGEST, Call, ControlStandIn, Reply, Terminal, status_report

HOSTILE = "evil/[red]x[/red]\x1b[2J"
ESCAPED = r"evil/[red]x[/red]\x1b[2J"


def busy_report(**changes: Any) -> dict[str, Any]:
    """A report with something in each of its parts, and hostile names."""
    hour = {"requests": 200, "hits": 150, "bytes": 4 << 20, "bytes_from_store": 3 << 20, "upstream_requests": 9}
    pull = {
        **{"image": HOSTILE, "client": "10.0.0.7", "started": 1050.0, "duration": 1.5, "sent": 2 << 20},
        **{"from_store": 1 << 20, "result": "mixed"},
    }
    fill = {"digest": DIGEST, "image": HOSTILE, "received": 1 << 20, "size": 4 << 20, "readers": 3, "started": 1055.0}
    parts: dict[str, Any] = {
        **{"problems": ["registry ghcr.io is down"], "fills": [fill], "pulls": {"running": [pull], "recent": [pull]}},
        **{"ratio": {"hour": hour, "day": hour, "week": hour}},
        "images": [{"name": HOSTILE, "requests": 7.4, "bytes": 3 << 20, "last": 1000.0}],
        "ratelimit": [
            {"registry": "registry-1.docker.io", "credential": "anonymous", "limit": 100, "remaining": 7, "at": 1000.0},
            {"registry": "ghcr.io", "credential": "account", "limit": None, "remaining": 5, "at": 1000.0},
        ],
        "upstreams": [
            {"registry": "ghcr.io", "is_up": False, "reason": HOSTILE},
            {"registry": "quay.io", "is_up": True, "reason": None},
        ],
    }
    return status_report(**parts | changes)


class TestStatus:
    """hubcache status"""

    def test_report_has_all_parts(self, control: ControlStandIn) -> None:
        control.replies["GET /v1/status"] = Reply(busy_report())
        done = control.run("status")
        assert (done.exit_code, done.stderr) == (0, "")
        for words in (
            *("problem: registry ghcr.io is down\n", "used:      5.0 GiB of 50.0 GiB (10 %), 12 objects\n"),
            *("hour       200  75 %  4.0 MiB            75 %                  9\n", f"ghcr.io  down: {ESCAPED}\n"),
            *("quay.io  up\n", "rate limit of registry-1.docker.io (anonymous): 7 of 100 remaining, 1 min ago\n"),
            *(
                "rate limit of ghcr.io (account): 5 remaining, 1 min ago\n",
                f"{ESCAPED}         7  3.0 MiB  1 min ago\n",
            ),
            *(f"{ESCAPED}   1.0 MiB  4.0 MiB        3  5 s ago\n", f"{ESCAPED}  10.0.0.7  10 s ago"),
        ):
            assert words in done.stdout

    def test_idle_cache_has_a_short_report(self, control: ControlStandIn) -> None:
        control.replies["GET /v1/status"] = Reply(status_report())
        done = control.run("status")
        assert done.exit_code == 0
        assert "upstreams" not in done.stdout
        assert "pulls" not in done.stdout

    def test_json_is_the_report(self, control: ControlStandIn) -> None:
        control.replies["GET /v1/status"] = Reply(busy_report())
        assert json.loads(control.run("status", "--json").stdout) == busy_report()

    def test_other_version_is_a_warning(self, control: ControlStandIn) -> None:
        control.replies["GET /v1/status"] = Reply(status_report(version="0.1"))
        done = control.run("status", "--json")
        assert done.exit_code == 0
        assert done.stderr.startswith("hubcache: warning: the cache runs version 0.1, this command is version ")
        assert json.loads(done.stdout)["version"] == "0.1"


class TestTop:
    """hubcache top"""

    def test_pipe_gets_a_report_for_each_reading(self, control: ControlStandIn) -> None:
        control.replies["GET /v1/status"] = Reply(busy_report())
        done = control.run("top", "--count", "2", "--interval", "0.1")
        assert (done.exit_code, len(control.calls)) == (0, 2)
        assert done.stdout.count("problem: registry ghcr.io is down\n") == 2

    def test_json_is_a_line_for_each_reading(self, control: ControlStandIn) -> None:
        control.replies["GET /v1/status"] = Reply(busy_report())
        done = control.run("top", "--count", "2", "--interval", "0.1", "--json")
        assert [json.loads(line) for line in done.stdout.splitlines()] == [busy_report()] * 2

    def test_interrupt_is_a_normal_end(self, control: ControlStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("time.sleep", interrupt)
        control.replies["GET /v1/status"] = Reply(status_report())
        assert control.run("top").exit_code == 0

    def test_unreachable_cache_is_an_error(self, control: ControlStandIn) -> None:
        control.replies["GET /v1/status"] = Reply({"error": "busy"}, 503)
        assert control.run("top").exit_code == 4

    def test_terminal_shows_rates_and_survives_a_restart(
        self, control: ControlStandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("NO_COLOR", "1")
        later = busy_report(now=1062.0)
        later["ratio"]["hour"] = later["ratio"]["hour"] | {"bytes": 24 << 20}
        readings: Iterator[Reply | str] = iter([Reply(busy_report()), "ends", Reply(busy_report()), Reply(later)])

        def answer(_: Call) -> Reply:
            reading = next(readings)
            if isinstance(reading, str):
                raise ConnectionAbortedError
            return reading

        control.replies["GET /v1/status"] = answer
        out, ends = Terminal(), [0]
        monkeypatch.setattr("time.sleep", lambda _: ends.append(len(out.getvalue())))
        top._show_live(ControlClient(control.directory), Output(stdout=out), 0.0, 4)
        shown = out.getvalue()
        last_views = [shown[start:end].split("last hour")[-2] for start, end in pairwise([*ends, len(shown)])]
        assert ["the cache ended while it answered" in view for view in last_views] == [False, True, False, False]
        assert "last hour 200 requests, 75 % hits" in shown
        assert "now 10.0 MiB/s" in shown
        assert ESCAPED in shown
        assert "\x1b[2J" not in shown


class TestVerify:
    """hubcache verify"""

    @staticmethod
    def answer(control: ControlStandIn, *states: str) -> None:
        """Let the cache verify objects of 1 MiB; `found damaged` is what it reports before a repair."""
        events: list[dict[str, Any]] = [{"begin": True, "objects": len(states), "bytes": len(states) << 20}]
        for state in states:
            key = "found" if state.startswith("found ") else "state"
            error = {} if state in ("good", "repaired") else {"error": HOSTILE}
            events.append({"digest": DIGEST, "size": 1 << 20, key: state.removeprefix("found ")} | error)
        control.replies["POST /v1/verify"] = Reply(events=[*events, {"done": True}])

    def test_sound_content_is_one_line(self, control: ControlStandIn) -> None:
        self.answer(control, "good", "good")
        done = control.run("verify")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "2 objects, 2.0 MiB: 2 good\n", "")
        assert control.calls[-1].body == {"repair": False}

    @pytest.mark.parametrize(
        ("states", "code"),
        [
            (["good", "damaged"], 1),
            (["missing"], 1),
            (["found damaged", "not repairable"], 1),
            (["found damaged", "good", "repaired"], 0),
            ([], 0),
        ],
    )
    def test_damage_that_remains_is_exit_code_1(self, control: ControlStandIn, states: list[str], code: int) -> None:
        self.answer(control, *states)
        done = control.run("verify", "--repair")
        assert done.exit_code == code
        assert control.calls[-1].body == {"repair": True}
        for state in states:
            reason = "" if state == "repaired" else f": {ESCAPED}"
            line = f"{DIGEST}  1.0 MiB  {state.removeprefix('found ')}{reason}\n"
            assert (line in done.stdout) is (state != "good")
        reported = [state for state in states if not state.startswith("found ")]
        read = [state for state in states if state not in ("repaired", "not repairable")]
        objects = "1 object" if len(reported) == 1 else f"{len(reported)} objects"
        assert f"{objects}, {text.size(len(read) << 20)}: " in done.stdout

    def test_json_is_a_line_for_each_event(self, control: ControlStandIn) -> None:
        self.answer(control, "good", "damaged")
        done = control.run("verify", "--json")
        assert done.exit_code == 1
        assert [json.loads(line).get("state") for line in done.stdout.splitlines()] == [None, "good", "damaged", None]

    def test_terminal_shows_a_bar(self, control: ControlStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        from hubcache.cli import verify

        monkeypatch.setenv("COLUMNS", "120")
        err = Terminal()
        with verify.progress_bar(Output(stdout=io.StringIO(), stderr=err)) as progress:
            progress.update(progress.task_ids[0], total=2 << 20, completed=1 << 20, damaged="1 damaged")
            progress.refresh()
        assert "1.0/2.0 MiB" in err.getvalue()
        assert "1 damaged" in err.getvalue()
