"""scripts/soak finds faults of the store and of the run, and succeeds in a short run."""

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from soaklib import disturbances, endurance, fuzz, inspection
from soaklib.cli import main
from soaklib.faults import TROUBLES
from soaklib.fuzz import Fuzz
from soaklib.inspection import Findings, bytes_over_cap, inspect
from soaklib.kills import Kills
from soaklib.outcome import Interval, Outcome
from soaklib.process import memory_of, sample
from soaklib.pulls import Pull, Results
from soaklib.report import row_of_fuzz, rows_of_kills
from support.paths import REPOSITORY
from support.stores import opened_store, put_blob

DATA = bytes(range(256)) * 400
CAPACITY = 64 << 20


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The file of a blob in a store that was closed."""

    async def store() -> None:
        async with opened_store(tmp_path, CAPACITY) as opened:
            await put_blob(opened, DATA)

    asyncio.run(store())
    [file] = (tmp_path / "store" / "blobs").rglob("*.*")
    return file


def flip_a_bit(file: Path) -> None:
    file.write_bytes(bytes([DATA[0] ^ 1]) + DATA[1:])


def cut(file: Path) -> None:
    file.write_bytes(DATA[:-1])


def add_a_stray(file: Path) -> None:
    file.with_name("stray").write_bytes(b"stray")


def fill_the_disk(file: Path) -> None:
    file.with_name("large").write_bytes(b"x" * (CAPACITY + (1 << 20)))


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (flip_a_bit, {"wrong"}),
        (cut, {"wrong", "account"}),
        (Path.unlink, {"lost"}),
        (add_a_stray, {"orphans"}),
        (fill_the_disk, {"orphans", "over_cap"}),
    ],
)
def test_damage_to_a_store_is_found(
    stored: Path, tmp_path: Path, damage: Callable[[Path], None], names: set[str]
) -> None:
    damage(stored)
    found, _ = inspect(tmp_path, CAPACITY)
    assert {line.partition(":")[0] for line in found.lines} == names


def test_an_undamaged_store_has_no_findings(stored: Path, tmp_path: Path) -> None:
    digest = str(Digest.of(DATA))
    found, content = inspect(tmp_path, CAPACITY, {digest})
    assert stored.exists()
    assert (found, content) == (Findings(), {digest})


def test_a_damaged_blob_that_the_program_finds_is_not_a_finding(stored: Path, tmp_path: Path) -> None:
    flip_a_bit(stored)
    found, content = inspect(tmp_path, CAPACITY, damaged={str(Digest.of(DATA))})
    assert (found, content) == (Findings(), set())


def test_missing_content_is_found(tmp_path: Path) -> None:
    found, _ = inspect(tmp_path, CAPACITY, {"sha256:0"})
    assert found.lost == ["sha256:0"]


def test_only_failures_outside_of_faults_count() -> None:
    pulls = [
        Pull("in", "proxy", 11.0, 12.0, "broken"),
        Pull("out", "proxy", 1.0, 2.0, "broken"),
        Pull("fine", "proxy", 1, 2),
    ]
    outcome = Outcome(Results(pulls), [Interval("fault", 10.0, 20.0)])
    assert [pull.image for pull in outcome.failed] == ["out"]


def test_kills_of_no_process_and_a_fuzz_of_no_input_prove_nothing() -> None:
    assert not any(row.holds for row in rows_of_kills(Kills(0, 100, Findings(), 1)))
    assert not any(row.holds for row in rows_of_kills(Kills(1, 100, Findings(), 0)))
    assert all(row.holds for row in rows_of_kills(Kills(1, 100, Findings(), 1)))
    assert not row_of_fuzz(Fuzz(0, [])).holds
    assert row_of_fuzz(Fuzz(1, [])).holds


@pytest.mark.parametrize("output", ["", "stat::number_of_executed_units: 0"])
def test_a_fuzz_target_that_tried_nothing_is_a_finding(monkeypatch: pytest.MonkeyPatch, output: str) -> None:
    def run(*_: object, timeout: float) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess([], 0, output, "")

    monkeypatch.setattr(fuzz, "run_module", run)
    assert fuzz.fuzz_all(1, 1.0, lambda _: None).findings


async def test_a_crash_of_the_sampler_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error is raised at once."""

    def crash(*_: object) -> int:
        raise ZeroDivisionError

    async def pull(self: object, count: int) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(endurance, "_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(endurance, "bytes_over_cap", crash)
    monkeypatch.setattr(endurance.Clients, "run", pull)
    product: Any = SimpleNamespace(store=tmp_path, ssl_context=lambda: None, mirror=1, proxy=1)
    run = endurance.Endurance(tmp_path, 1, 1, lambda _: None)
    hub: Any = None
    async with asyncio.timeout(20):
        with pytest.raises(ExceptionGroup) as raised:
            await run._pull(product, hub, [], 60.0, 0, 0)
    assert raised.group_contains(ZeroDivisionError)


async def test_clients_that_end_before_the_last_fault_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(endurance, "_CALM_SECONDS", 0.0)
    pulling = asyncio.create_task(asyncio.sleep(0))
    await pulling
    plan: Any = SimpleNamespace(plan=lambda *_: [("fault", None)])
    run = endurance.Endurance(tmp_path, 1, 1, lambda _: None)
    with pytest.raises(RuntimeError, match="1 faults and kills still to do"):
        await run._disturb(plan, pulling, Outcome(Results()), 1.0, 1, 0)


@pytest.mark.parametrize(("walks", "over"), [([5, 3, -2, 9], -2), ([5, 3, 4, 9], 3), ([-1], -1)])
def test_an_excess_over_the_cap_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, walks: list[int], over: int
) -> None:
    """Files change while they are counted, so that one count may be wrong."""
    left = iter(walks)
    monkeypatch.setattr(inspection, "disk_bytes", lambda directory: (100 + next(left), 0))
    assert bytes_over_cap(tmp_path, 100) == over


def test_a_program_that_does_not_run_has_no_sample() -> None:
    class Stopped:
        @property
        def pid(self) -> int:
            raise AssertionError

    product: Any = Stopped()
    assert (sample(product), memory_of(product)) == (None, None)


def test_a_killed_worker_is_replaced_before_the_next_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric counts a killed worker until the program notices its end."""
    seen = iter([[1, 2], [1, 2], [2], [2], [2, 3]])
    now: list[int] = []

    def children(pid: int) -> list[int]:
        now[:] = next(seen)
        return list(now)

    counts = iter([1.0, 2.0])
    product: Any = SimpleNamespace(pid=0, metric=lambda name: next(counts))
    monkeypatch.setattr(disturbances, "children", children)
    disturbances.wait_for_successor(product, 1)
    assert (now, list(counts)) == ([2, 3], [])


def test_a_soak_that_runs_nothing_does_not_succeed() -> None:
    assert main(["--kills", "0", "--program-kills", "0", "--seconds", "0", "--fuzz", "0", "--attacks"]) == 1


def test_the_readme_says_how_many_faults_there_are() -> None:
    readme = (REPOSITORY / "scripts" / "README.md").read_text()
    assert f"fails in the {len(TROUBLES)} ways" in " ".join(readme.split())


SKIPPED = {"kills": "0", "fuzz": "0", "program-kills": "0", "seconds": "0", "troubles": "0"}


@pytest.mark.e2e
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "parts",
    [{"kills": "10", "fuzz": "7"}, {"program-kills": "2"}, {"seconds": "10", "troubles": "3"}],
    ids=["kills and fuzz", "killed program", "faults"],
)
def test_a_short_soak_finds_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], parts: dict[str, str]
) -> None:
    """The program allocates its buffers and fills its store within some 8 seconds, also on a busy machine."""
    monkeypatch.setattr(endurance, "WARM_UP_SECONDS", 10.0)
    monkeypatch.setattr(endurance, "_CALM_SECONDS", 2.0)
    monkeypatch.setattr(endurance, "_LAST_CALM_SECONDS", 5.0)
    monkeypatch.setattr(endurance, "_SAMPLE_SECONDS", 0.3)
    monkeypatch.setattr(disturbances, "_TROUBLE_SECONDS", 2.0)
    arguments = [word for name, value in (SKIPPED | parts).items() for word in (f"--{name}", value)]
    code = main([*arguments, "--attacks"])
    captured = capsys.readouterr()
    assert code == 0, captured.out + captured.err
