"""scripts/simulate --fleet: what it counts, and the cost and the limits that it computes."""

from pathlib import Path

import pytest
from simlib import cli, fleet_cost, fleet_report
from simlib.fleet import Fleet, FleetReplay, FleetScore
from simlib.generator import PRESETS, generate
from simlib.trace import Kind, Request, Trace

MB = 10**6
DAY = 86400.0
OPEN = 1 << 60
"""A size that is never reached."""


@pytest.fixture(scope="module")
def few_pulls() -> Trace:
    return generate("few", 3, cli.changed(PRESETS["small"], ["pulls=100", "repos=20", "scan_images=10"]))


def replayed(trace: Trace, nodes: int = 1, store: int = OPEN, bucket: int = OPEN, **others: float) -> FleetScore:
    return FleetReplay(
        trace, Fleet(nodes, store, bucket, **({"lifetime": 0.0, "expire_after": 99 * DAY} | others))
    ).run()  # type: ignore[arg-type]


def pulls(*images: str, hours: float = 1.0) -> Trace:
    """One pull of an image every few hours: a manifest, and a layer of 10 MB for each letter of its name."""
    requests: list[Request] = []
    for number, image in enumerate(images):
        time = 3600.0 * hours * number
        requests.append(Request(time, f"manifest {image}", 1000, Kind.MANIFEST, str(number)))
        requests += [Request(time + 1, layer, 10 * MB, Kind.LAYER, str(number)) for layer in image]
    return Trace.of("test", requests)


@pytest.fixture(autouse=True)
def without_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simlib.fleet.WARM_UP", 0.0)


@pytest.mark.parametrize("nodes", [1, 4, 100])
def test_a_fleet_whose_bucket_is_large_enough_fetches_all_content_once(few_pulls: Trace, nodes: int) -> None:
    score = replayed(few_pulls, nodes)
    assert score.bytes["registry"] == score.new_bytes == few_pulls.footprint()
    assert score.bytes.total() == sum(few_pulls.sizes[key] for key in few_pulls.keys)
    assert score.requests.total() == len(few_pulls)
    assert score.validations == score.pulls


def test_a_replaced_node_receives_its_content_from_the_bucket() -> None:
    trace = pulls("a", "a", "a")
    assert replayed(trace).requests == {"registry": 2, "store": 4}
    assert replayed(trace, lifetime=1.5 * 3600).requests == {"registry": 2, "store": 2, "bucket": 2}


def test_nodes_receive_a_blob_from_each_other_until_it_is_uploaded() -> None:
    trace = Trace.of("test", [Request(at, "layer", 500 * MB, Kind.LAYER, str(at)) for at in range(40)])
    score = replayed(trace, nodes=100)
    assert score.requests["registry"] == 1
    assert score.requests["peer"] + score.requests["store"] >= 19, "it takes 20 s at 50 MB a second"
    assert score.requests["bucket"] >= 10


def test_content_that_a_full_store_refuses_is_fetched_again_unless_stores_admit_what_the_bucket_lacks() -> None:
    trace = pulls("a", "a", "a", "b", "c", "b", "c", hours=24)
    own = replayed(trace, store=11 * MB, admit_after=4, admits_absent=False)
    fleet = replayed(trace, store=11 * MB, admit_after=4)
    assert (own.bytes["registry"], fleet.bytes["registry"]) == (50 * MB + 3000, 30 * MB + 3000)
    assert (own.bytes["bucket"], fleet.bytes["bucket"]) == (0, 10 * MB)


@pytest.mark.parametrize("admits_absent", [False, True])
def test_the_bucket_has_no_more_bytes_than_its_size(few_pulls: Trace, admits_absent: bool) -> None:
    size = few_pulls.footprint() // 10
    score = replayed(few_pulls, 4, size // 5, size, admits_absent=admits_absent, lifetime=10 * DAY)
    assert 0.5 * size < score.most <= size
    assert score.bytes["registry"] > score.new_bytes


def test_warm_up_is_not_counted(few_pulls: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simlib.fleet.WARM_UP", 0.5)
    score = replayed(few_pulls, 2)
    assert score.requests.total() == len(few_pulls) - len(few_pulls) // 2
    assert score.bytes["registry"] == score.new_bytes < few_pulls.footprint()


def test_cost_of_the_background_follows_from_the_periods_of_the_program() -> None:
    assert fleet_cost.heartbeats(1000) == {"put": 259_200, "list": 259_200}
    assert fleet_cost.heartbeats(1001) == {"put": 259_200, "list": 518_400}
    assert fleet_cost.dollars(fleet_cost.heartbeats(10)) == pytest.approx(2.592)
    assert fleet_cost.counts() == {"put": 43_200}
    shared = fleet_cost.sweeps(10, 100_000)
    assert shared["list"] == pytest.approx(4320 * 109 / 10)
    assert shared["get"] == pytest.approx(4320 * 14 / 10 + 4320)
    assert fleet_cost.sweeps(10, 1_000_000)["list"] == pytest.approx(432 * 1009 / 10), "sweeps are less frequent"


def test_limits_are_the_highest_numbers_that_are_possible() -> None:
    assert fleet_cost._most(lambda number: number <= 7416) == 7400
    assert fleet_cost._most(lambda number: number <= 99) == 99
    assert "25 " in fleet_cost.limits()


def test_the_command_writes_results_and_reports_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fleet.json"
    made = ["small", "--set", "pulls=100", "--set", "repos=10", "--fleet", "16,1", "--json", str(file)]
    assert cli.main([*made, "--store", "5", "--bucket", "50"]) == 0
    first = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in first.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:4]] == ["1", "16"]
    assert "(5 % of all distinct bytes)" in " ".join(first.split())
    assert cli.main(["--report", str(file)]) == 0
    assert capsys.readouterr().out == first
    assert len(fleet_report.FleetResults.load(file).fleets) == 2


@pytest.mark.parametrize("sizes", ["0,4", "few", ""])
def test_sizes_of_fleets_must_be_numbers_above_0(sizes: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--fleet", sizes])
