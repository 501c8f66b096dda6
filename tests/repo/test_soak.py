"""scripts/soak reports faults, treats missing measurements as failures, and succeeds in a short run."""

import asyncio
import io
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from soaklib import disturbances, endurance, fuzz, inspection
from soaklib.attacker import Target, idle, slow
from soaklib.cli import main
from soaklib.faults import TROUBLES
from soaklib.fuzz import Fuzz
from soaklib.hostility import AttackFailedError, attacking, sampling
from soaklib.inspection import Findings, bytes_over_cap, inspect
from soaklib.kills import Kills
from soaklib.modules import module_command
from soaklib.outcome import MIN_SAMPLES, Interval, Outcome, TooFewSamplesError
from soaklib.process import Sample, memory_of, sample
from soaklib.pulls import Pull, Results
from soaklib.report import row_of_fuzz, rows_of_kills, rows_of_run
from support.http_client import wait_until
from support.paths import REPOSITORY
from support.ports import free_port
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


FINE = Pull("fine", "proxy", 1, 2)


def samples(*readings: tuple[int, int, int], begun: float = 0.0) -> list[Sample]:
    """Readings of memory, descriptors and tasks, one a second."""
    return [Sample(begun + second, *reading) for second, reading in enumerate(readings)]


def verdicts(outcome: Outcome) -> dict[str, bool]:
    """Whether each promise of a run without kills holds, by the first words of the promise."""
    return {" ".join(row.promise.split()[:2]): row.holds for row in rows_of_run(outcome, 60.0, 0)}


def growth(outcome: Outcome) -> tuple[bool, bool, bool]:
    """Whether the growth of memory, descriptors and tasks is within its bounds."""
    found = verdicts(outcome)
    return found["memory of"], found["descriptors of"], found["tasks of"]


LOW, HIGH = (100 << 20, 50, 30), (150 << 20, 90, 90)


def test_growth_is_a_failure() -> None:
    assert growth(Outcome(Results(), samples=samples(*[LOW] * 10, *[HIGH] * 10))) == (False, False, False)
    assert growth(Outcome(Results(), samples=samples(*[LOW] * 20))) == (True, True, True)


def test_too_few_samples_are_a_failure() -> None:
    assert growth(Outcome(Results())) == (False, False, False)
    assert growth(Outcome(Results(), samples=samples(*[LOW] * (MIN_SAMPLES - 1)))) == (False, False, False)
    assert growth(Outcome(Results(), samples=samples(*[LOW] * MIN_SAMPLES))) == (True, True, True)


def test_a_reading_of_0_is_a_failure() -> None:
    outcome = Outcome(Results(), samples=samples(*[LOW] * 10, (100 << 20, 50, 0)))
    assert growth(outcome) == (True, True, False)
    with pytest.raises(TooFewSamplesError, match="1 of 11 samples read 0"):
        outcome.thirds("tasks")


def test_growth_compares_calm_times_only() -> None:
    """Resources used during a fault neither hide growth nor count as growth."""
    calm = samples(*[LOW] * 10)
    late = samples(*[HIGH] * 20, begun=10.0)
    assert growth(Outcome(Results(), [Interval("fault", 10.0, 30.0)], calm + late)) == (True, True, True)
    early = samples(*[HIGH] * 10, *[LOW] * 10, *[HIGH] * 10)
    assert growth(Outcome(Results(), [Interval("fault", 0.0, 10.0)], early)) == (False, False, False)


def test_samples_of_faults_alone_are_too_few() -> None:
    outcome = Outcome(Results(), [Interval("fault", 0.0)], samples(*[LOW] * 20))
    assert growth(outcome) == (False, False, False)


def test_the_warm_up_is_not_compared() -> None:
    """Growth in the warm-up is not growth, and growth after it is."""
    warming = samples((10 << 20, 5, 5), *[LOW] * 10)
    assert Outcome(Results(), samples=warming, warm_at=1.0).thirds("memory") == (100 << 20, 100 << 20)
    assert len(Outcome(Results(), samples=warming, warm_at=1.0).calm) == 10
    later = samples(*[LOW] * 10, *[HIGH] * 10)
    assert growth(Outcome(Results(), samples=later, warm_at=3.0)) == (False, False, False)


def test_a_run_without_a_pull_proves_nothing() -> None:
    found = verdicts(Outcome(Results([Pull("app", "proxy", 1, 2, "broken")]), [Interval("fault", 0.0)], over_cap=0))
    assert (found["no client"], found["no pull"], found["the cap"]) == (False, False, True)
    found = verdicts(Outcome(Results([FINE])))
    assert (found["no client"], found["no pull"], found["the cap"]) == (True, True, False)


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


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys, time; sys.stdin.readline()\n{code}"]


@pytest.mark.parametrize("code", ["", "print('no')", "print('ready too late')"])
def test_an_attacker_that_is_not_ready_is_an_error(code: str) -> None:
    with pytest.raises(AttackFailedError, match="not ready"), attacking(python(code), []):
        pytest.fail("nothing is measured")


def test_an_attacker_that_ends_too_early_is_an_error() -> None:
    code = "import os; print('ready', flush=True); os._exit(1)"
    with pytest.raises(AttackFailedError, match="ended too early, with 1"), attacking(python(code), []):
        time.sleep(1.0)


def test_an_attacker_that_runs_to_the_end_reports_its_connections() -> None:
    code = "print('ready\\n20 connections\\n15 connections', flush=True); time.sleep(60)"
    with attacking(python(code), []) as attacker:
        time.sleep(0.1)
    assert attacker.connections == (20, 15)


def test_an_attacker_without_a_connection_is_an_error() -> None:
    code = "print('ready\\n0 connections', flush=True); time.sleep(60)"
    with pytest.raises(AttackFailedError, match="no connection"), attacking(python(code), []):
        time.sleep(0.1)


def test_an_attack_on_a_port_where_nothing_listens_is_never_ready() -> None:
    port = free_port()
    with (
        pytest.raises(AttackFailedError, match="not ready"),
        attacking(module_command("attacker", "idle", port, port, 1), []),
    ):
        pytest.fail("nothing is measured")


@pytest.mark.parametrize("attack", [idle, slow])
async def test_connections_that_the_server_closed_are_not_held(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], attack: Callable[[Target], Awaitable[None]]
) -> None:
    """This includes connections from which the client has not yet read everything that was sent."""
    writers: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(b"x" * 10_000)
        if len(writers) % 2:
            writer.close()

    monkeypatch.setattr("soaklib.attacker.IDLE", 6)
    monkeypatch.setattr("soaklib.attacker.SLOW", 6)
    monkeypatch.setattr("sys.stdin", io.StringIO('["a", "b", "c"]\n'))
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await attack(Target(port, port, time.monotonic() + 2.5))
        for writer in writers:
            writer.close()
    ready, *counts = capsys.readouterr().out.splitlines()
    assert (ready, counts[-1]) == ("ready", "3 connections")


def test_the_highest_measurement_counts() -> None:
    values = [7, 9, 5, None]
    with sampling(lambda: values.pop() if values else 7) as peak:
        wait_until(lambda: not values)
    assert peak.most == 9


def test_a_missing_measurement_is_an_error() -> None:
    with pytest.raises(AttackFailedError, match="never measured"), sampling(lambda: None):
        pass


def test_a_crash_of_a_measurement_is_raised() -> None:
    def crash() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), sampling(crash):
        pass


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
