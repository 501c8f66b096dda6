"""scripts/simulate: its traces, its policies, and the gate: what the project's policy must reach."""

import os
import random
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hubcache.decide import retention
from hypothesis import given
from hypothesis import strategies as st
from simlib import cli, lineup
from simlib.chart import chart
from simlib.generator import PRESETS, generate
from simlib.lineup import Settings, libcachesim
from simlib.policies import Belady, Frequency, Infinite, Lru, Policy, Ranked, S3Fifo
from simlib.reader import read, write
from simlib.replay import Score, replay
from simlib.trace import Kind, Request, Trace, TraceError
from support.paths import REPOSITORY as ROOT
from support.required import missing

MIB = 1 << 20


@pytest.fixture(scope="module")
def small() -> Trace:
    return generate("small", 46, PRESETS["small"])


def entrants(library: object = None) -> dict[str, lineup.Entrant]:
    return {one.name: one for one in lineup.lineup(Settings(), library)}


def requests(*keys: str, size: int = 1) -> Trace:
    """One request a second, each its own pull."""
    return Trace.of("test", [Request(at, key, size, Kind.LAYER, str(at)) for at, key in enumerate(keys)])


def hits(policy: Policy, trace: Trace) -> str:
    """`+` for each hit and `-` for each miss."""
    asked = zip(trace.times, trace.keys, strict=True)
    return "".join("-+"[policy.request(at, now, key, trace.sizes[key])] for at, (now, key) in enumerate(asked))


# -- the gate --------------------------------------------------------------------------------------------------------


def test_the_policy_reaches_what_it_must_on_small_with_a_tenth_of_the_bytes(small: Trace) -> None:
    score = replay(small, entrants()["hubcache"].make(small, small.footprint() // 10))
    assert score.objects >= 0.69
    assert score.bytes >= 0.515
    assert score.images >= 0.53


def test_admission_costs_few_hits_and_saves_a_third_of_the_writes(small: Trace) -> None:
    chosen = {name: entrants()[name].make(small, small.footprint() // 10) for name in ("hubcache", "hubcache-1")}
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


def test_after_a_scan_of_five_times_the_store_all_popular_images_are_whole() -> None:
    chance, capacity, now = random.Random(1), 1000 * MIB, 0.0
    policy = Frequency(capacity, retention.Retention[int]())
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


def test_it_is_the_module_of_the_store_that_is_measured(small: Trace) -> None:
    policy = entrants()["hubcache"].make(small, 1)
    assert isinstance(policy, Frequency)
    assert type(policy.retention) is retention.Retention


# -- traces ----------------------------------------------------------------------------------------------------------


def test_small_is_the_trace_that_the_figures_were_measured_on(small: Trace) -> None:
    described = (
        "small: 62,814 requests in 6,093 pulls over 60.0 days, 18,713 objects of 992.0 GB, 3,728.0 GB of traffic"
    )
    assert small.describe() == described


def test_every_trace_that_can_be_made_is_offered() -> None:
    assert tuple(PRESETS) == cli.PRESETS


@pytest.mark.parametrize("name", ["drift", "scan", "death"])
def test_the_same_seed_makes_the_same_trace_and_another_another(name: str) -> None:
    parameters = cli.changed(PRESETS[name], ["pulls=300", "repos=40", "kill_day=10.5", "scan_images=5"])
    first, same, other = (generate(name, seed, parameters) for seed in (1, 1, 2))
    assert first == same
    assert first.keys != other.keys
    assert list(first.times) == sorted(first.times)
    assert max(first.keys) < len(first.sizes) == len(first.kinds)
    assert max(first.pulls) < first.pull_count


def test_a_trace_written_is_the_trace_read(tmp_path: Path) -> None:
    trace = generate("small", 3, cli.changed(PRESETS["small"], ["pulls=200", "repos=20"]))
    write(trace, tmp_path / "trace")
    again = read(tmp_path / "trace")
    assert again.describe() == trace.describe().replace("small", "trace")
    policies = [Ranked(trace.footprint() // 10, lambda clock, count, size: clock + count / size) for _ in range(2)]
    assert replay(again, policies[0]) == replay(trace, policies[1])


def test_a_trace_may_be_out_of_order_and_tell_no_pulls(tmp_path: Path) -> None:
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


def test_an_access_log_is_a_trace_and_its_pulls_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG + '{"ts": 700.0, "ki')
    trace = read(tmp_path / "log")
    assert list(trace.times) == [100.0, 101.0, 103.0, 104.0, 600.0]
    assert list(trace.sizes) == [10, 100, 5]
    assert list(trace.pulls) == [0, 0, 1, 2, 3], "asked again; another client; after a pause"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no requests in it"),
        ("# nothing\n\n", "no requests in it"),
        ("1 a 10 layer\n", ":1: 4 fields, expected TIME KEY SIZE KIND PULL"),
        ("1 a 10 layer p\nx a 10 layer p\n", ":2: not a time, size or kind"),
        ("1 a ten layer p\n", ":1: not a time, size or kind"),
        ("1 a 10 wheel p\n", ":1: not a time, size or kind"),
        ("nan a 10 layer p\n", "makes no sense"),
        ("1 a -10 layer p\n", "makes no sense"),
        ("1 a 10 layer p\n1e15 a 10 layer p\n", "more than 20 years apart"),
        ('{"ts": 1\n{"ts": 2}\n', ":1: not JSON"),
        ('{"ts": 1, "kind": "blob", "digest": "x", "size": "big", "repository": "a"}\n', ":1: not an entry"),
        ('{"ts": 1, "kind": "wheel", "digest": "x", "size": 1, "repository": "a"}\n', ":1: not an entry"),
        ('{"kind": "blob", "digest": "x", "size": 1, "repository": "a"}\n', ":1: not an entry"),
        ('{"ts": 1, "kind": "blob", "digest": null}\n', "no line tells time, digest and size"),
    ],
)
def test_a_file_that_is_no_trace_is_an_error_that_says_where(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(TraceError) as error:
        read(file)
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)


def test_a_binary_file_is_no_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(TraceError, match="not a text file"):
        read(file)


# -- policies --------------------------------------------------------------------------------------------------------


def test_lru_forgets_what_was_not_used_longest() -> None:
    assert hits(Lru(2), requests(*"abacbab")) == "--+---+"
    assert hits(Lru(2), requests(*"abacab")) == "--+-+-"


def test_lfu_keeps_what_was_used_most_and_gdsf_lets_it_age() -> None:
    trace = requests(*"aaabcbcdbca")
    assert hits(Ranked(2, lambda clock, count, size: count), trace)[-1] == "+"
    assert hits(Ranked(2, lambda clock, count, size: clock + count / size), requests(*"aaabcdefgha"))[-1] == "-"


def test_s3_fifo_moves_what_was_asked_for_again_to_the_main_queue() -> None:
    trace = requests(*"aaabcdefghijklmnopqa")
    assert hits(S3Fifo(10), trace)[-1] == "+"
    assert hits(Lru(10), trace)[-1] == "-"


def test_belady_keeps_what_will_be_asked_for_next() -> None:
    trace = requests(*"abcabcba")
    assert hits(Belady(2, trace), trace) == "---++-++"
    assert hits(Lru(2), trace) == "------+-"


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 9e4)), min_size=1, max_size=60), st.integers(0, 40))
def test_no_policy_has_what_was_never_asked_for_and_none_beats_the_infinite(
    asked: list[tuple[str, float]], capacity: int
) -> None:
    trace = Trace.of("test", [Request(time, key, ord(key) % 10, Kind.LAYER, None) for key, time in asked])
    best = hits(Infinite(), trace)
    for entrant in entrants().values():
        seen = hits(entrant.make(trace, capacity), trace)
        assert all(had == "+" for had, mine in zip(best, seen, strict=True) if mine == "+"), entrant.name


def test_the_rivals_are_those_of_libcachesim(small: Trace) -> None:
    library = libcachesim() or missing("libcachesim is not installed")
    ours, theirs = entrants(), entrants(library)
    for name, tolerance in {"lru": 1e-9, "lfu": 1e-9, "gdsf": 0.01, "s3-fifo": 0.02}.items():
        first, second = (one[name].make(small, small.footprint() // 10) for one in (ours, theirs))
        assert type(first) is not type(second)
        mine, reference = replay(small, first), replay(small, second)
        assert mine.objects == pytest.approx(reference.objects, abs=tolerance)
        assert mine.bytes == pytest.approx(reference.bytes, abs=tolerance)


# -- the command -----------------------------------------------------------------------------------------------------


def simulate(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """What scripts/simulate starts when all is set up."""
    command = [sys.executable, "-m", "simlib", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT / 'addon'}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_prints_the_table_and_draws_the_picture(tmp_path: Path) -> None:
    svg, trace = tmp_path / "a.svg", tmp_path / "trace"
    made = ("--set", "pulls=300", "--set", "repos=20", "--write", str(trace), "--policies", "hubcache,lru,belady")
    done = simulate("small", *made, "--own", "--sizes", "5,10,20", "--svg", str(svg))
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows] == ["policy", "---", "belady", "hubcache", "lru"]
    assert [cell.strip() for cell in rows[0][1:4]] == ["5 %", "10 %", "20 %"]
    picture = ET.parse(svg).getroot()
    assert len(picture.findall("{*}polyline")) == 9
    again = simulate(str(trace), "--policies", "hubcache,lru,belady", "--own", "--sizes", "5,10,20")
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == [
        line for line in done.stdout.splitlines() if line.startswith("|")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "no file nosuch, and no trace of that name; there are small, drift, scan, death, large"),
        (["--set", "speed=1"], "no parameter 'speed'; there are days, pulls,"),
        (["--set", "pulls=many"], "not a value for pulls: 'many'"),
        (["--set", "pulls=0"], "must be above 0"),
        (["--set", "pulls=300", "--set", "tau_sig=-1"], "no trace can be made with these parameters"),
        (["death", "--set", "repos=20", "--set", "new_per_day=0"], "kill_top must be below repos"),
        (["--policies", "magic"], "no such policy: magic; there are infinite,"),
        (["--sizes", "0,5"], "above 0"),
        (["--half-life", "x"], "not a number of days: x"),
        (["--write", "/nonexistent/trace", "--set", "pulls=50"], "/nonexistent/trace: No such file"),
        ([__file__, "--set", "pulls=1"], "--set is for traces that are made"),
        ([__file__], ":1:"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(cli.main(arguments))
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("scripts/simulate: ")
    assert message in said


def test_help_documents_the_formats() -> None:
    done = simulate("--help")
    assert done.returncode == 0
    for word in ("TIME KEY SIZE KIND PULL", "repository", "--expire-after", "S", "hubcache-1"):
        assert word in done.stdout


def test_a_picture_of_one_size_or_of_nothing_is_a_picture_too() -> None:
    for curves in ({}, {"a<b": [(0.1, Score(0.5, 0.25, 1.0, 0.1))]}):
        picture = ET.fromstring(chart("t & u", curves))
        assert picture.findtext("{*}title") == "t & u"


def test_the_cost_is_measured_on_request() -> None:
    from simlib.cost import cost

    report = cost(history=3000, residents=500, rounds=200)
    for line in ("request for a resident", "eviction walk", "restore", "this history opens in"):
        assert line in report
