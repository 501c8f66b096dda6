"""The quarantine keeps the latest files within its limits."""

from pathlib import Path

from hubcache.oci.digest import Digest
from hubcache.store.quarantine import MAX_FILES, Quarantine
from support.stores import files_below


def test_quarantine_keeps_the_latest_files_within_its_limits(tmp_path: Path) -> None:
    now = iter(range(100))
    quarantine = Quarantine(tmp_path / "quarantine", lambda: float(next(now)))
    for number in range(MAX_FILES + 5):
        assert quarantine.write(bytes([number]) * 1000, Digest.of(bytes([number]))) is not None
        quarantine.trim()
    kept = sorted(path.read_bytes()[0] for path in files_below(tmp_path / "quarantine"))
    assert kept == list(range(5, MAX_FILES + 5))
    quarantine.max_bytes = 3 * 4096
    assert quarantine.trim() == 3 * 4096
    kept = sorted(path.read_bytes()[0] for path in files_below(tmp_path / "quarantine"))
    assert kept == list(range(MAX_FILES + 2, MAX_FILES + 5))


def test_file_that_is_too_large_for_the_quarantine_is_removed(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine")
    quarantine.max_bytes = 4096
    path = tmp_path / "blob"
    path.write_bytes(b"x" * 5000)
    assert quarantine.move(path, Digest.of(b"x")) is None
    assert not path.exists()
    assert quarantine.write(b"x" * 5000, Digest.of(b"x")) is None
    assert quarantine.trim() == 0
