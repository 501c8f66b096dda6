"""A node joins its fleet when the bucket has been examined: at start, or when the bucket is back."""

import pytest
from hubcache.fleet import joining
from hubcache.fleet.bucket import Bucket, BucketUnavailable
from hubcache.fleet.fleet_counts import FleetCounts
from hubcache.fleet.joining import Joining
from hubcache.oci.errors import ConfigError
from obstore.store import MemoryStore
from support.users import until


class Examination:
    """Raises these errors, one at each call, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.join_errors: list[Exception] = []
        self.joined = 0
        self.bucket = Bucket(MemoryStore(), FleetCounts())
        self.joining = Joining("s3://name", self.bucket, self.examine, self.join)

    async def examine(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    async def join(self) -> None:
        assert self.bucket.closed_because is None
        if self.join_errors:
            raise self.join_errors.pop(0)
        self.joined += 1


DOWN = BucketUnavailable("connection refused")


async def test_bucket_that_answers_is_joined_at_start() -> None:
    examination = Examination()
    assert not examination.bucket.is_usable
    await examination.joining.start()
    assert (examination.joined, examination.bucket.is_usable) == (1, True)
    await examination.joining.close()


async def test_bucket_that_is_down_is_joined_when_it_answers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(joining, "_RETRY_SECONDS", 0.01)
    caplog.set_level("INFO")
    examination = Examination(DOWN, DOWN, DOWN)
    await examination.joining.start()
    assert (examination.joined, examination.bucket.is_usable) == (0, False)
    assert [record.getMessage() for record in caplog.records] == [
        "hubcache: working alone until the bucket answers: s3://name: connection refused"
    ]
    await until(lambda: examination.joined)
    assert examination.bucket.is_usable
    assert "the bucket answers: s3://name" in caplog.text
    await examination.joining.close()


async def test_bucket_that_is_down_while_the_node_joins_is_examined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_RETRY_SECONDS", 0.01)
    examination = Examination()
    examination.join_errors = [DOWN, DOWN]
    await examination.joining.start()
    assert not examination.bucket.is_usable
    await until(lambda: examination.joined)
    assert examination.bucket.is_usable
    await examination.joining.close()


async def test_bucket_that_breaks_promises_is_refused_at_start() -> None:
    examination = Examination(ConfigError("hubcache_bucket: two nodes created the same object"))
    with pytest.raises(ConfigError, match="two nodes"):
        await examination.joining.start()
    assert (examination.joined, examination.bucket.is_usable) == (0, False)


async def test_bucket_that_breaks_promises_is_never_used_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(joining, "_RETRY_SECONDS", 0.01)
    examination = Examination(DOWN, ConfigError("two nodes created the same object"))
    await examination.joining.start()
    await until(lambda: "working alone: two nodes created the same object" in caplog.text)
    assert examination.joined == 0
    with pytest.raises(BucketUnavailable, match="two nodes created"):
        await examination.bucket.get("a")
    await examination.joining.close()


async def test_bucket_that_hangs_does_not_hold_up_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_START_SECONDS", 0.01)
    examination = Examination(TimeoutError())
    await examination.joining.start()
    assert examination.joined == 0
    await examination.joining.close()
