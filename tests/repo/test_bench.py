"""scripts/bench: summaries, access log, targets, tables, the chart, and its servers."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchlib.accesslog import FORMAT, Entry, Traffic
from benchlib.cli import compare, main
from benchlib.hubcache_server import wait_for_workers
from benchlib.metrics import Metrics
from benchlib.processes import BenchError
from benchlib.report import FLEET_LABELS, FLEET_ROWS, LABELS, PANELS, ROWS, markdown, svg
from benchlib.server import Server
from benchlib.servers import COMPARED, START
from benchlib.stats import Summary, percentile, ratios
from benchlib.table import cell, columns, number, render
from benchlib.targets import TARGETS, Target, targets_of
from benchlib.workloads import WORKLOADS
from support.paths import REPOSITORY

SVG = "{http://www.w3.org/2000/svg}"


def entry(uri: str, server: str = "cdn", size: int = 10) -> str:
    fields = {"end": 12.5, "seconds": 2.0, "uri": uri, "status": 200, "bytes": size, "server": server}
    return json.dumps(fields)


def summary(value: float) -> Summary:
    return Summary.of([value])


def test_a_summary_is_the_median_and_the_range() -> None:
    assert Summary.of([3.0, 1.0, 10.0]) == Summary(3.0, 1.0, 10.0)
    assert Summary.of([1.0, 2.0]).median == 1.5


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile([5.0], 99) == 5
    assert percentile([2.0, 1.0], 0) == 1


def test_a_summary_of_no_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Summary.of([])
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)


def test_the_start_of_a_request_is_computed_from_its_log_line() -> None:
    assert Entry.parse(entry("/v2/a/blobs/x")) == Entry(10.5, "/v2/a/blobs/x", 200, 10, "cdn")


def test_the_log_format_contains_every_parsed_field() -> None:
    for name in json.loads(entry("/")):
        assert f'"{name}":' in FORMAT


def test_traffic_counts_all_requests_and_only_cdn_responses_with_bytes_as_fetches() -> None:
    lines = [entry("/b"), "", entry("/b", size=0), entry("/b", "registry", 1), entry("/c")]
    traffic = Traffic.parse(lines)
    assert (traffic.requests, traffic.bytes, len(traffic.fetches("/b"))) == (4, 21, 1)


def test_a_log_line_that_is_not_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        Traffic.parse(["GET / 200"])


def test_a_target_with_a_reference_compares_medians() -> None:
    target = Target("warm", "MB/s", least=0.85, reference="nginx")
    results = {"hubcache": {"MB/s": summary(90)}, "nginx": {"MB/s": summary(100)}}
    assert target.value(results) == 0.9
    assert target.reached(0.9)
    assert not target.reached(0.8)
    assert target.describe() == "hubcache: MB/s ≥ 0.85 x nginx"


def test_a_target_has_no_value_if_it_was_not_measured() -> None:
    target = Target("warm", "MB/s", least=0.85, reference="nginx")
    assert target.value({"hubcache": {"MB/s": summary(90)}}) is None
    assert target.value({"nginx": {"MB/s": summary(90)}}) is None


def test_a_target_with_two_bounds_requires_both() -> None:
    target = Target("cold", "fetches", least=1, most=1)
    assert [target.reached(value) for value in (0, 1, 2)] == [False, True, False]


def test_a_target_for_the_worst_round_is_not_reached_by_the_median() -> None:
    target = Target("kill", "failed pulls", most=0, worst=True)
    assert target.value({"hubcache": {"failed pulls": Summary.of([0.0, 0.0, 1.0])}}) == 1
    assert target.describe() == "hubcache: failed pulls ≤ 0 in each round"


def test_every_workload_has_a_memory_target_and_every_target_a_workload() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(names) == len(set(names))
    assert {target.workload for target in TARGETS} <= set(names)
    for name in names:
        assert targets_of(name)[-2] == Target(name, "peak MB", most=200)
        assert targets_of(name)[-1] == Target(name, "peak MB", most=200, server="hubcache-workers")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1, "1"), (0.123, "0.12"), (12.34, "12.3"), (1234.5, "1,234"), (24, "24")]
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_cell_shows_the_range_if_the_values_differ() -> None:
    assert cell(Summary.of([5.0, 5.0])) == "5"
    assert cell(Summary.of([1.0, 2.0, 4.0])) == "2 (1-4)"


def test_columns_are_aligned() -> None:
    assert list(columns([["", "MB/s"], ["nginx", "1"]])) == ["       MB/s", "nginx  1"]


def test_the_table_shows_ratios_failures_and_targets() -> None:
    results = {"hubcache": {"MB/s": summary(90), "peak MB": summary(250)}, "nginx": {"MB/s": summary(100)}}
    compared = {"hubcache / other": {"MB/s": Summary.of([0.9, 1.0, 1.1])}}
    text = render("warm-blob-1", "stored blob", results, {"drayage": "not installed"}, compared)
    assert "  hubcache / other  1 (0.90-1.10)" in text
    assert "  hubcache          90             250" in text
    assert "  nginx             100            -" in text
    assert "drayage: failed, not installed" in text
    assert "target hubcache: MB/s ≥ 0.85 x nginx: 0.90, reached" in text
    assert "target hubcache: MB/s ≥ 1 x nginx: 0.90, NOT REACHED" in text
    assert "target hubcache: peak MB ≤ 200: 250, NOT REACHED" in text


def document(**figures: float) -> dict[str, object]:
    """A results file with one workload."""
    values = {"hubcache": {name: [value, value, 9e9] for name, value in figures.items()}, "nginx": {"MB/s": [500.0]}}
    targets = [{"target": "hubcache: MB/s ≥ 1 x nginx", "value": 0.8, "reached": figures["speed"] > 1}]
    machine = {
        "cores": 2,
        "kernel": "6.1-amd64",
        "python": "3.13",
        "versions": {"nginx": "nginx version: nginx/1.22 (Debian)"},
    }
    values["hubcache"]["MB/s"] = [400.0, 400.0, 1.0]
    return {"machine": machine, "workloads": {"warm-blob-8": {"values": values, "targets": targets}}}


def test_the_report_shows_medians_and_omits_rows_without_values() -> None:
    lines = markdown(document(speed=2)).splitlines()
    (row,) = [line for line in lines if line.startswith("| stored 400 MB blob, 8 clients")]
    assert row.split("|")[3:6] == [" 400 ", "  ", " 500 "]
    assert len([line for line in lines if line.startswith("| ")]) == 2
    assert "Linux 6.1, Python 3.13, nginx 1.22." in lines[0]
    assert "reached all targets" in lines[-1]


def test_the_report_lists_missed_targets() -> None:
    assert "- warm-blob-8, hubcache: MB/s ≥ 1 x nginx: 0.80" in markdown(document(speed=1)).splitlines()


def test_the_report_has_a_table_of_a_fleet_only_if_one_was_measured() -> None:
    results = document(speed=2)
    assert "share a bucket" not in markdown(results)
    values = {"hubcache": {"last s": [10.0]}, "hubcache-fleet": {"last s": [12.0], "upstream x": [1.0]}}
    workloads = {"fleet-new-images": {"values": values, "targets": []}}
    lines = markdown(results | {"workloads": workloads}).splitlines()
    rows = lines[lines.index("Caches that share a bucket of SeaweedFS on the same machine:") + 4 :]
    assert [row.split("|")[2:6] for row in rows[:2]] == [[" s ", " 10 ", "  ", " 12 "], [" x ", "  ", "  ", " 1 "]]
    assert rows[2] == ""


def test_the_report_shows_limited_servers_in_the_column_of_the_others_and_failures_of_the_worst_round() -> None:
    limited = {"hubcache-limited": {"last s": [10.0]}, "hubcache-fleet-limited": {"last s": [12.0]}}
    killed = {"hubcache-fleet": {"failed pulls": [0.0, 2.0, 0.0]}}
    values = {"fleet-new-images-limited": limited, "fleet-kill": killed}
    workloads = {name: {"values": row, "targets": []} for name, row in values.items()}
    rows = [line.split("|")[2:6] for line in markdown(document(speed=2) | {"workloads": workloads}).splitlines()]
    assert [" s ", " 10 ", "  ", " 12 "] in rows
    assert ["  ", "  ", "  ", " 2 "] in rows


def test_the_chart_has_a_bar_with_label_and_value_for_each_server() -> None:
    texts = [element.text for element in ElementTree.fromstring(svg(document(speed=2))).iter(f"{SVG}text")]
    assert texts == ["hubcache", "nginx, static files", "400", "500", PANELS[0][0]]


def test_equal_results_give_an_identical_chart_without_a_date() -> None:
    chart = svg(document(speed=2))
    assert chart == svg(document(speed=2))
    assert "date" not in chart


def test_bar_lengths_are_the_values_and_hubcache_is_highlighted() -> None:
    from charts import BarPanel, bar_chart  # here, because matplotlib takes half a second to import
    from matplotlib.patches import Rectangle

    panel = BarPanel("title", {"hubcache": 4.0, "nginx": 5.0}, {"hubcache": "4", "nginx": "5"})
    (axes,) = bar_chart([panel], frozenset({"hubcache"})).axes
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == [4.0, 5.0]
    assert bars[0].get_facecolor() != bars[1].get_facecolor()


WORKING = Server("hubcache-workers", 1, "https://registry", "registry", Path())


def test_a_server_is_awaited_until_all_its_workers_are_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter((1, 1, 2, 3))
    read: Callable[[Server], Metrics] = lambda _: Metrics.parse(f"hubcache_workers {next(counts)}\n")  # noqa: E731
    monkeypatch.setattr(Metrics, "read", read)
    wait_for_workers(WORKING, 2)
    assert next(counts) == 3


def test_a_worker_that_does_not_connect_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metrics, "read", lambda _: Metrics.parse("hubcache_workers 1\n"))
    with pytest.raises(BenchError, match=r"^hubcache-workers: 1 of 2 workers are connected after 0 s$"):
        wait_for_workers(WORKING, 2, seconds=0)


def test_ratios_are_computed_round_by_round() -> None:
    assert ratios([10.0, 30.0, 8.0], [20.0, 60.0, 10.0]) == Summary(0.5, 0.5, 0.8)
    assert ratios([1.0], [0.0]) is None
    assert ratios([1.0, 2.0], [1.0]) is None
    assert ratios([], []) is None


def test_each_server_is_compared_with_that_of_the_other_checkout() -> None:
    values = {"hubcache": {"MB/s": [90.0], "s": [1.0]}, "other": {"MB/s": [100.0]}, "hubcache-mitmweb": {"s": [1.0]}}
    assert compare(values) == {"hubcache / other": {"MB/s": summary(0.9)}}


def test_the_other_checkout_must_have_the_addon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--list", "--against", str(tmp_path)])
    assert "has no addon/cache.py" in capsys.readouterr().err
    assert main(["--list", "--against", str(REPOSITORY)]) == 0


def test_report_and_comparison_name_existing_workloads_and_servers() -> None:
    rows = (*ROWS, *FLEET_ROWS, *PANELS)
    assert {workload for _, workload, _ in rows} <= {workload.name for workload in WORKLOADS}
    assert {*LABELS, *FLEET_LABELS, *COMPARED, *COMPARED.values()} <= set(START)
    assert {target.server for target in TARGETS} <= set(START)
    assert all(set(workload.servers) <= set(START) for workload in WORKLOADS)
