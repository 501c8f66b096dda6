"""The benchmark's arithmetic: summaries, log parsing, targets and the table."""

import json
from xml.etree import ElementTree

import pytest
from benchlib.accesslog import FORMAT, Entry, Traffic
from benchlib.report import PANELS, ROWS, SERVERS, markdown, svg
from benchlib.servers import STARTS
from benchlib.stats import Summary, percentile
from benchlib.table import cell, columns, number, render
from benchlib.targets import WANTED, Target, targets
from benchlib.workloads import WORKLOADS


def entry(uri: str, server: str = "cdn", size: int = 10) -> str:
    fields = {"end": 12.5, "seconds": 2.0, "uri": uri, "status": 200, "bytes": size, "server": server}
    return json.dumps(fields)


def summary(value: float) -> Summary:
    return Summary.of([value])


def test_a_summary_is_the_median_and_the_range() -> None:
    assert Summary.of([3.0, 1.0, 10.0]) == Summary(3.0, 1.0, 10.0)
    assert Summary.of([1.0, 2.0]).median == 1.5


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile([5.0], 99) == 5
    assert percentile([2.0, 1.0], 0) == 1


def test_no_values_are_an_error_not_a_zero() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Summary.of([])
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)


def test_a_log_line_tells_when_its_request_began() -> None:
    assert Entry.parse(entry("/v2/a/blobs/x")) == Entry(10.5, "/v2/a/blobs/x", 200, 10, "cdn")


def test_the_log_format_has_the_fields_that_are_parsed() -> None:
    for name in json.loads(entry("/")):
        assert f'"{name}":' in FORMAT


def test_traffic_counts_all_requests_but_only_bytes_of_the_cdn_as_fetches() -> None:
    lines = [entry("/b"), "", entry("/b", size=0), entry("/b", "registry", 1), entry("/c")]
    traffic = Traffic.parse(lines)
    assert (traffic.requests, traffic.bytes, len(traffic.fetches("/b"))) == (4, 21, 1)


def test_a_line_that_is_not_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        Traffic.parse(["GET / 200"])


def test_a_target_beside_a_peer_compares_medians() -> None:
    target = Target("warm", "MB/s", least=0.85, of="nginx")
    results = {"ours": {"MB/s": summary(90)}, "nginx": {"MB/s": summary(100)}}
    assert target.value(results) == 0.9
    assert target.reached(0.9)
    assert not target.reached(0.8)
    assert target.describe() == "ours: MB/s ≥ 0.85 x nginx"


def test_a_target_is_not_judged_when_it_was_not_measured() -> None:
    target = Target("warm", "MB/s", least=0.85, of="nginx")
    assert target.value({"ours": {"MB/s": summary(90)}}) is None
    assert target.value({"nginx": {"MB/s": summary(90)}}) is None


def test_a_target_with_two_bounds_needs_both() -> None:
    target = Target("cold", "fetches", least=1, most=1)
    assert [target.reached(value) for value in (0, 1, 2)] == [False, True, False]


def test_every_workload_limits_memory_and_every_target_has_its_workload() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(names) == len(set(names))
    assert {target.workload for target in WANTED} <= set(names)
    for name in names:
        assert targets(name)[-2] == Target(name, "peak MB", most=200)
        assert targets(name)[-1] == Target(name, "peak MB", most=200, ours="ours-workers")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1, "1"), (0.123, "0.12"), (12.34, "12.3"), (1234.5, "1,234"), (24, "24")]
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_cell_shows_the_range_only_if_there_is_one() -> None:
    assert cell(Summary.of([5.0, 5.0])) == "5"
    assert cell(Summary.of([1.0, 2.0, 4.0])) == "2 (1-4)"


def test_columns_are_aligned() -> None:
    assert list(columns([["", "MB/s"], ["ours", "1"]])) == ["      MB/s", "ours  1"]


def test_the_table_shows_verdicts_and_what_was_left_out() -> None:
    results = {"ours": {"MB/s": summary(90), "peak MB": summary(250)}, "nginx": {"MB/s": summary(100)}}
    text = render("warm-blob-1", "stored blob", results, {"drayage": "not installed"})
    assert "  ours   90    250" in text
    assert "  nginx  100   -" in text
    assert "drayage: left out, not installed" in text
    assert "wanted ours: MB/s ≥ 0.85 x nginx: 0.90, reached" in text
    assert "wanted ours: MB/s ≥ 1 x nginx: 0.90, NOT REACHED" in text
    assert "wanted ours: peak MB ≤ 200: 250, NOT REACHED" in text


def document(**figures: float) -> dict[str, object]:
    """As `--json` writes it, of one workload."""
    values = {"ours": {name: [value, value, 9e9] for name, value in figures.items()}, "nginx": {"MB/s": [500.0]}}
    goals = [{"wanted": "ours: MB/s ≥ 1 x nginx", "value": 0.8, "reached": figures["speed"] > 1}]
    machine = {
        "cores": 2,
        "kernel": "6.1-amd64",
        "python": "3.13",
        "versions": {"nginx": "nginx version: nginx/1.22 (Debian)"},
    }
    values["ours"]["MB/s"] = [400.0, 400.0, 1.0]
    return {"machine": machine, "workloads": {"warm-blob-8": {"values": values, "targets": goals}}}


def test_the_report_has_the_medians_of_each_server_and_leaves_out_what_was_not_measured() -> None:
    lines = markdown(document(speed=2)).splitlines()
    (row,) = [line for line in lines if line.startswith("| the same, 8 clients")]
    assert row.split("|")[3:6] == [" 400 ", "  ", " 500 "]
    assert len([line for line in lines if line.startswith("| ")]) == 2
    assert "Linux 6.1, Python 3.13, nginx 1.22." in lines[0]
    assert "were reached" in lines[-1]


def test_the_report_tells_goals_that_were_missed() -> None:
    assert "- warm-blob-8, ours: MB/s ≥ 1 x nginx: 0.80" in markdown(document(speed=1)).splitlines()


def test_the_picture_is_xml_with_a_bar_for_each_value() -> None:
    bars = ElementTree.fromstring(svg(document(speed=2))).findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 1 + 2


def test_the_report_asks_for_what_there_is() -> None:
    assert {workload for _, workload, _ in (*ROWS, *PANELS)} <= {workload.name for workload in WORKLOADS}
    assert set(SERVERS) <= set(STARTS)
