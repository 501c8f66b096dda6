"""scripts/simulate: its traces and policies, and the hit ratios that hubcache's policy must reach."""

import os
import random
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hubcache.decide import retention
from hypothesis import given
from hypothesis import strategies as st
from simlib import cli
from simlib.candidates import Candidate, Settings, candidates, libcachesim
from simlib.generator import PRESETS, generate
from simlib.policies import Belady, Hubcache, Infinite, Lru, Policy, Ranked, S3Fifo
from simlib.reader import read, write
from simlib.replay import Curve, Score, replay
from simlib.trace import Kind, Request, Trace, TraceError
from support.paths import REPOSITORY as ROOT
from support.required import missing

MIB = 1 << 20


@pytest.fixture(scope="module")
def small() -> Trace:
    return generate("small", 46, PRESETS["small"])


def by_name(library: object = None) -> dict[str, Candidate]:
    return {one.name: one for one in candidates(Settings(), library)}


def requests(*keys: str, size: int = 1) -> Trace:
    """One request a second, each its own pull."""
    return Trace.of("test", [Request(at, key, size, Kind.LAYER, str(at)) for at, key in enumerate(keys)])


def hits(policy: Policy, trace: Trace) -> str:
    """`+` for each hit and `-` for each miss."""
    requests = zip(trace.times, trace.keys, strict=True)
    return "".join("-+"[policy.request(index, now, key, trace.sizes[key])] for index, (now, key) in enumerate(requests))


# -- required hit ratios -----------------------------------------------------------------------------------------------


def test_hubcache_reaches_the_required_hit_ratios_on_small_with_a_tenth_of_the_bytes(small: Trace) -> None:
    score = replay(small, by_name()["hubcache"].make(small, small.footprint() // 10))
    assert score.objects >= 0.69
    assert score.bytes >= 0.515
    assert score.images >= 0.53


def test_admission_costs_few_hits_and_saves_a_third_of_the_writes(small: Trace) -> None:
    chosen = {name: by_name()[name].make(small, small.footprint() // 10) for name in ("hubcache", "hubcache-1")}
    with_admission, without = (replay(small, policy) for policy in chosen.values())
    assert without.objects - with_admission.objects < 0.015
    assert without.bytes - with_admission.bytes < 0.025
    assert with_admission.written < without.written * 2 / 3


def images(count: int, first: int, chance: random.Random, shared: list[int]) -> list[list[tuple[int, int]]]:
    """Images of a manifest, a config and six layers, with their sizes, besides the shared layers."""
    made = []
    for image in range(count):
        start = first + 10 * image
        own = [(start, 2000), (start + 1, 7000)] + [(start + 2 + n, chance.randrange(100, 8 * MIB)) for n in range(6)]
        made.append(own + [(layer, 30 * MIB) for layer in shared])
    return made


def test_a_scan_of_five_times_the_capacity_evicts_nothing_from_popular_images() -> None:
    chance, capacity, now = random.Random(1), 1000 * MIB, 0.0
    policy = Hubcache(capacity, retention.Retention[int]())
    popular = images(20, 0, chance, [-1])

    def pull(image: list[tuple[int, int]]) -> list[bool]:
        nonlocal now
        now += 30.0
        return [policy.request(0, now, key, size) for key, size in image]

    for _ in range(3):
        for image in popular:
            pull(image)
    before = sum(size for key, size in {part for image in popular for part in image})
    assert before < 0.8 * capacity
    scanned, number = 0, 1000
    while scanned < 5 * capacity:
        (image,) = images(1, number, chance, [-2])
        pull(image)
        scanned += sum(size for key, size in image if key != -2)
        number += 10
    assert policy.retention.bytes > 0.9 * capacity
    assert all(all(pull(image)) for image in popular)


def test_hubcache_is_simulated_with_the_retention_module_of_the_store(small: Trace) -> None:
    policy = by_name()["hubcache"].make(small, 1)
    assert isinstance(policy, Hubcache)
    assert type(policy.retention) is retention.Retention


# -- traces ----------------------------------------------------------------------------------------------------------


def test_the_small_trace_is_unchanged(small: Trace) -> None:
    described = (
        "small: 62,814 requests in 6,093 pulls over 60.0 days, 18,713 objects of 992.0 GB, 3,728.0 GB of traffic"
    )
    assert small.describe() == described


def test_every_generated_trace_is_listed_in_the_help() -> None:
    assert tuple(PRESETS) == cli.PRESETS


@pytest.mark.parametrize("name", ["drift", "scan", "death"])
def test_equal_seeds_give_equal_traces_and_different_seeds_different_ones(name: str) -> None:
    parameters = cli.changed(PRESETS[name], ["pulls=300", "repos=40", "kill_day=10.5", "scan_images=5"])
    first, same, other = (generate(name, seed, parameters) for seed in (1, 1, 2))
    assert first == same
    assert first.keys != other.keys
    assert list(first.times) == sorted(first.times)
    assert max(first.keys) < len(first.sizes) == len(first.kinds)
    assert max(first.pulls) < first.pull_count


def test_reading_a_written_trace_restores_it(tmp_path: Path) -> None:
    trace = generate("small", 3, cli.changed(PRESETS["small"], ["pulls=200", "repos=20"]))
    write(trace, tmp_path / "trace")
    again = read(tmp_path / "trace")
    assert again.describe() == trace.describe().replace("small", "trace")
    policies = [Ranked(trace.footprint() // 10, lambda clock, count, size: clock + count / size) for _ in range(2)]
    assert replay(again, policies[0]) == replay(trace, policies[1])


def test_a_trace_file_may_be_unordered_and_without_pulls(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("# made by hand\n\n3 b 20 layer -\n1.5 a 10 manifest x\n2 b 20 blob x\n")
    trace = read(file)
    assert list(trace.times) == [1.5, 2.0, 3.0]
    assert (list(trace.sizes), list(trace.pulls)) == ([10, 20], [0, 0, -1])
    assert replay(trace, Infinite(), warm_up=0.0).images == 0.0


LOG = """\
{"ts": 100.0, "kind": "manifest", "digest": "sha256:m", "size": 10, "repository": "a/b", "result": "miss"}
{"ts": 101.0, "kind": "blob", "digest": "sha256:l", "size": 100, "repository": "a/b", "result": "miss"}
{"ts": 102.0, "kind": "manifest", "digest": null, "size": null, "repository": "a/c", "result": "notfound"}
{"ts": 103.0, "kind": "manifest", "digest": "sha256:m", "size": 10, "repository": "a/b", "result": "hit", "door": 1}
{"ts": 104.0, "kind": "config", "digest": "sha256:c", "size": 5, "repository": "a/b", "client": "10.0.0.1"}
{"ts": 105.0, "kind": "config", "digest": "sha256:c", "size": 5, "repository": "a/b", "result": "error"}
{"ts": "1970-01-01T00:10:00+00:00", "kind": "blob", "digest": "sha256:l", "size": 100, "repository": "a/b"}
"""


def test_an_access_log_is_read_as_a_trace_with_separate_pulls(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG + '{"ts": 700.0, "ki')
    trace = read(tmp_path / "log")
    assert list(trace.times) == [100.0, 101.0, 103.0, 104.0, 600.0]
    assert list(trace.sizes) == [10, 100, 5]
    assert list(trace.pulls) == [0, 0, 1, 2, 3], "a repeated request, another client, and a pause each start a pull"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no requests in it"),
        ("# nothing\n\n", "no requests in it"),
        ("1 a 10 layer\n", ":1: 4 fields, expected TIME KEY SIZE KIND PULL"),
        ("1 a 10 layer p\nx a 10 layer p\n", ":2: not a time, size or kind"),
        ("1 a ten layer p\n", ":1: not a time, size or kind"),
        ("1 a 10 wheel p\n", ":1: not a time, size or kind"),
        ("nan a 10 layer p\n", "is out of range"),
        ("1 a -10 layer p\n", "is out of range"),
        ("1 a 10 layer p\n1e15 a 10 layer p\n", "more than 20 years apart"),
        ('{"ts": 1\n{"ts": 2}\n', ":1: not JSON"),
        ('{"ts": 1, "kind": "blob", "digest": "x", "size": "big", "repository": "a"}\n', ":1: not an entry"),
        ('{"ts": 1, "kind": "wheel", "digest": "x", "size": 1, "repository": "a"}\n', ":1: not an entry"),
        ('{"kind": "blob", "digest": "x", "size": 1, "repository": "a"}\n', ":1: not an entry"),
        ('{"ts": 1, "kind": "blob", "digest": null}\n', "no line has time, digest and size"),
    ],
)
def test_an_invalid_trace_file_is_an_error_with_its_position(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(TraceError) as error:
        read(file)
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)


def test_a_binary_file_is_not_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(TraceError, match="not a text file"):
        read(file)


# -- policies --------------------------------------------------------------------------------------------------------


def test_lru_evicts_the_least_recently_used_object() -> None:
    assert hits(Lru(2), requests(*"abacbab")) == "--+---+"
    assert hits(Lru(2), requests(*"abacab")) == "--+-+-"


def test_lfu_keeps_frequently_used_objects_and_gdsf_ages_them() -> None:
    trace = requests(*"aaabcbcdbca")
    assert hits(Ranked(2, lambda clock, count, size: count), trace)[-1] == "+"
    assert hits(Ranked(2, lambda clock, count, size: clock + count / size), requests(*"aaabcdefgha"))[-1] == "-"


def test_s3_fifo_moves_repeatedly_requested_objects_to_the_main_queue() -> None:
    trace = requests(*"aaabcdefghijklmnopqa")
    assert hits(S3Fifo(10), trace)[-1] == "+"
    assert hits(Lru(10), trace)[-1] == "-"


def test_belady_keeps_the_objects_that_are_requested_next() -> None:
    trace = requests(*"abcabcba")
    assert hits(Belady(2, trace), trace) == "---++-++"
    assert hits(Lru(2), trace) == "------+-"


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 9e4)), min_size=1, max_size=60), st.integers(0, 40))
def test_no_policy_has_more_hits_than_an_infinite_cache(asked: list[tuple[str, float]], capacity: int) -> None:
    trace = Trace.of("test", [Request(time, key, ord(key) % 10, Kind.LAYER, None) for key, time in asked])
    best = hits(Infinite(), trace)
    for candidate in by_name().values():
        seen = hits(candidate.make(trace, capacity), trace)
        assert all(had == "+" for had, mine in zip(best, seen, strict=True) if mine == "+"), candidate.name


def test_own_implementations_have_the_hit_ratios_of_libcachesim(small: Trace) -> None:
    library = libcachesim() or missing("libcachesim is not installed")
    ours, theirs = by_name(), by_name(library)
    for name, tolerance in {"lru": 1e-9, "lfu": 1e-9, "gdsf": 0.01, "s3-fifo": 0.02}.items():
        first, second = (one[name].make(small, small.footprint() // 10) for one in (ours, theirs))
        assert type(first) is not type(second)
        mine, reference = replay(small, first), replay(small, second)
        assert mine.objects == pytest.approx(reference.objects, abs=tolerance)
        assert mine.bytes == pytest.approx(reference.bytes, abs=tolerance)


# -- the command -----------------------------------------------------------------------------------------------------


def texts(svg: str) -> set[str | None]:
    """The text elements of an SVG file."""
    return {element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


def simulate(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the program that scripts/simulate runs after the set-up."""
    command = [sys.executable, "-m", "simlib", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT / 'addon'}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_prints_a_table_and_writes_a_chart(tmp_path: Path) -> None:
    svg, trace = tmp_path / "a.svg", tmp_path / "trace"
    made = ("--set", "pulls=300", "--set", "repos=20", "--write", str(trace), "--policies", "hubcache,lru,belady")
    done = simulate("small", *made, "--no-libcachesim", "--sizes", "5,10,20", "--svg", str(svg))
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows] == ["policy", "---", "belady", "hubcache", "lru"]
    assert [cell.strip() for cell in rows[0][1:4]] == ["5 %", "10 %", "20 %"]
    assert {"hubcache", "lru", "belady", "Hits of whole images, %"} <= texts(svg.read_text())
    again = simulate(str(trace), "--policies", "hubcache,lru,belady", "--no-libcachesim", "--sizes", "5,10,20")
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == [
        line for line in done.stdout.splitlines() if line.startswith("|")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "nosuch is neither a file nor one of the traces small, drift, scan, death, large"),
        (["--set", "speed=1"], "no parameter 'speed'; the parameters are days, pulls,"),
        (["--set", "pulls=many"], "invalid value for pulls: 'many'"),
        (["--set", "pulls=0"], "must be above 0"),
        (["--set", "pulls=300", "--set", "tau_sig=-1"], "cannot generate a trace with these parameters"),
        (["death", "--set", "repos=20", "--set", "new_per_day=0"], "kill_top must be below repos"),
        (["--policies", "magic"], "no such policy: magic; the policies are infinite,"),
        (["--sizes", "0,5"], "above 0"),
        (["--half-life", "x"], "not a number of days: x"),
        (["--write", "/nonexistent/trace", "--set", "pulls=50"], "/nonexistent/trace: No such file"),
        ([__file__, "--set", "pulls=1"], "--set can only be used with a generated trace"),
        ([__file__], ":1:"),
    ],
)
def test_errors_are_reported_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(cli.main(arguments))
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("scripts/simulate: ")
    assert message in line


def test_help_documents_the_file_formats() -> None:
    done = simulate("--help")
    assert done.returncode == 0
    for word in ("TIME KEY SIZE KIND PULL", "repository", "--expire-after", "S", "hubcache-1"):
        assert word in done.stdout


@pytest.mark.parametrize("curves", [{}, {"a<b": [(0.1, Score(0.5, 0.25, 1.0, 0.1))]}])
def test_a_chart_may_have_no_curve_or_a_single_point(curves: dict[str, Curve]) -> None:
    from simlib.chart import chart  # here, because matplotlib takes half a second to import

    svg = chart("t & u", curves)
    assert ET.fromstring(svg).findtext("{*}title") == "t & u"
    assert set(curves) <= texts(svg)


def test_a_line_chart_has_all_points_and_dashes_the_bounds() -> None:
    from charts import Line, LinePanel, line_chart

    lines = [Line("bound", [(2.0, 70.0), (5.0, 80.0)], dashed=True), Line("lru", [(2.0, 30.0), (5.0, 40.0)])]
    panel, other = line_chart("title", "size", [LinePanel("requests", lines), LinePanel("bytes", lines)]).axes
    assert [list(np.asarray(line.get_ydata())) for line in panel.lines] == [[70.0, 80.0], [30.0, 40.0]]
    assert [line.get_linestyle() for line in panel.lines] == ["--", "-"]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["2", "5"]
    assert (panel.get_title("left"), other.get_title("left")) == ("requests", "bytes")


def test_cost_reports_cpu_time_and_the_time_to_open_a_store() -> None:
    from simlib.cost import cost

    report = cost(history=3000, residents=500, rounds=200)
    for line in ("request for stored content", "eviction of", "restoring the rows", "this history opens in"):
        assert line in report
