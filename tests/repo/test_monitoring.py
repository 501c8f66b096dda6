"""The alerts and the dashboard: their expressions are valid, use metrics that exist, and alert when they should."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hubcache.operate.pull import Pull
from obstore.store import MemoryStore
from ruamel.yaml import YAML  # a dependency of mitmproxy
from support import fleet_engines
from support.paths import REPOSITORY
from support.required import require
from support.standin import Hub

DEPLOY = REPOSITORY / "scripts" / "deploy"
ALERTS, ALERT_TESTS = DEPLOY / "alerts.yml", DEPLOY / "alerts_test.yml"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
VARIABLES = {"$instance": ".*", "$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h"}


def rules() -> list[dict[str, Any]]:
    return [rule for group in YAML(typ="safe").load(ALERTS)["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> list[str]:
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    found += [each["expr"] for each in DASHBOARD["annotations"]["list"] if "expr" in each]
    return found


def promtool(*arguments: object) -> str:
    require("promtool")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def served_metrics(hub: Hub, directory: Path) -> set[str]:
    """Return the names of all series that the cache can have, as a node of a fleet."""
    async with fleet_engines.node(hub, directory) as cache:
        text = cache.engine.metrics.render().decode()
    names = set[str]()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


async def test_every_metric_that_is_used_exists(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet_engines.use_store(monkeypatch, MemoryStore())
    exist = await served_metrics(hub, tmp_path / "store")
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = " ".join([rule["expr"] for rule in rules()] + dashboard_expressions())
    named = set(re.findall(r"\bhubcache[a-z0-9_:]+", used)) - recorded
    assert len(named) > 20
    assert named - exist == set()
    series = re.findall(r"series: (hubcache\w+)", ALERT_TESTS.read_text())
    assert set(series) - exist == set()
    unused = {name for name in exist - named if not name.endswith(("_sum", "_count"))}
    assert unused == set(), "metrics that the dashboard does not show"


def test_alert_rules_are_valid() -> None:
    promtool("check", "rules", ALERTS)


def test_alerts_fire_when_they_should_and_not_before() -> None:
    assert "SUCCESS" in promtool("test", "rules", ALERT_TESTS)


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tested = ALERT_TESTS.read_text()
    for rule in rules():
        if "alert" in rule:
            assert f'alertname="{rule["alert"]}"' in tested or f"alertname: {rule['alert']}" in tested, rule["alert"]
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            assert "$labels.instance" in rule["annotations"]["summary"]
            assert len(rule["annotations"]["description"]) > 100


def test_every_alert_is_in_the_list_for_operators() -> None:
    page = (REPOSITORY / "addon" / "hubcache" / "operate" / "README.md").read_text()
    listed = re.findall(r"^\| `(Hubcache\w+)` \| (\w+) \|", page, re.MULTILINE)
    assert listed == [(rule["alert"], rule["labels"]["severity"]) for rule in rules() if "alert" in rule]


def test_fields_of_a_pull_are_in_the_list_for_operators() -> None:
    page = (REPOSITORY / "addon" / "hubcache" / "operate" / "README.md").read_text()
    table = page.partition("| field | meaning |")[2].partition("\n\n")[0]
    rows = " ".join(re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE))
    listed = set(re.findall(r"`(\w+)`", rows))
    fields = Pull("c", "mirror", "i", "h", "r", 1.0, slowest="x", error="x").fields()
    assert listed == {"event", *fields}


def test_options_and_commands_that_alerts_name_exist() -> None:
    from hubcache.operate.options import OPTIONS

    named = set(re.findall(r"\bhubcache_[a-z_]+", " ".join(str(rule.get("annotations")) for rule in rules())))
    assert named
    assert named <= {option.name for option in OPTIONS}


def test_dashboard_expressions_are_valid(tmp_path: Path) -> None:
    """As a file of rules, since promtool checks no dashboards."""
    expressions = dashboard_expressions()
    for variable, value in VARIABLES.items():
        expressions = [expression.replace(variable, value) for expression in expressions]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    assert not any("$" in expression for expression in expressions)
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


def test_every_panel_says_what_it_shows_for_the_chosen_instances() -> None:
    for panel in panels():
        assert panel["title"]
        assert len(panel["description"]) > 20
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all("$instance" in target["expr"] for target in panel["targets"]), panel["title"]
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("row", ["Overview", "Clients", "Latency", "Registries", "Store", "Program", "Fleet"])
def test_dashboard_has_the_row(row: str) -> None:
    assert row in {panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"}
