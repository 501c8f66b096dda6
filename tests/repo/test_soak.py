"""scripts/soak: its checks find what is wrong, and a short run of each part finds nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from hubcache.oci.digest import Digest
from soaklib.cli import main
from soaklib.endurance import Interval, Outcome
from soaklib.inspection import Findings, inspect
from soaklib.process import Sample
from soaklib.pulls import Pull, Results
from soaklib.report import rows_of_run
from support.parts import opened_store, put_blob

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


def test_a_whole_store_is_found_whole(stored: Path, tmp_path: Path) -> None:
    digest = str(Digest.of(DATA))
    found, content = inspect(tmp_path, CAPACITY, {digest})
    assert stored.exists()
    assert (found, content) == (Findings(), {digest})


def test_a_damaged_blob_that_the_program_finds_is_no_fault(stored: Path, tmp_path: Path) -> None:
    flip_a_bit(stored)
    found, content = inspect(tmp_path, CAPACITY, damaged={str(Digest.of(DATA))})
    assert (found, content) == (Findings(), set())


def test_content_that_should_be_there_is_missed(tmp_path: Path) -> None:
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


def test_growth_is_a_failure() -> None:
    outcome = Outcome(Results(), samples=[Sample(100 << 20, 50, 30)] * 10 + [Sample(150 << 20, 90, 90)] * 10)
    verdicts = {row.promise.split()[0]: row.holds for row in rows_of_run(outcome, 60.0, 0)}
    assert (verdicts["memory"], verdicts["descriptors"], verdicts["tasks"]) == (False, False, False)


@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_a_short_soak_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["--kills", "10", "--program-kills", "2", "--seconds", "20", "--troubles", "3", "--fuzz", "7", "--attacks"]
    )
    said = capsys.readouterr()
    assert code == 0, said.out + said.err
