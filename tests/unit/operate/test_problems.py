"""Sentences about what is wrong, and what to do."""

from collections.abc import Iterable

import pytest
from hubcache.decide.eviction import Eviction, Reason
from hubcache.oci.digest import Digest
from hubcache.operate import problems
from hubcache.operate.metrics import RateLimit
from hubcache.store.capacity import Removal
from hubcache.transfer.breaker import Circuit

NOW = 1_800_000_000.0
KEY = Digest.of(b"x")


def one(found: Iterable[str]) -> str:
    (sentence,) = found
    return sentence


@pytest.mark.parametrize("part", ["directory", "index", "files"])
def test_store_that_cannot_be_used_is_named_with_advice(part: str) -> None:
    sentence = problems.store_problem(part, "/srv/store: Permission denied", public=False)
    assert "/srv/store: Permission denied. Check" in sentence
    assert "/srv/store" not in problems.store_problem(part, "/srv/store: Permission denied", public=True)


def test_host_that_does_not_answer_is_named_with_its_reason() -> None:
    circuits = {"ghcr.io": Circuit(), "quay.io": Circuit(3, "connection timed out", 1.0)}
    assert one(problems.upstream_problems(circuits)).startswith("quay.io does not answer: connection timed out. ")


@pytest.mark.parametrize(
    ("limit", "remaining", "age", "is_problem"),
    [
        *((100, 9, 0, True), (100, 10, 0, False), (100, 0, 0, True), (200, 19, 0, True), (200, 20, 0, False)),
        *((None, 0, 0, True), (None, 1, 0, False), (100, 1, 7 * 3600, False), (100, 1, 5 * 3600, True)),
    ],
)
def test_rate_limit_is_a_problem_when_little_remains(
    limit: int | None, remaining: int, age: float, is_problem: bool
) -> None:
    limits = {("registry-1.docker.io", "anonymous"): RateLimit(limit, remaining, NOW - age)}
    assert bool(list(problems.rate_limit_problems(limits, NOW))) is is_problem


def test_account_is_suggested_only_to_those_without_one() -> None:
    for credential in ("anonymous", "account"):
        sentence = one(problems.rate_limit_problems({("hub", credential): RateLimit(100, 3, NOW)}, NOW))
        assert sentence.startswith(f"3 of 100 pulls remain at hub ({credential}). ")
        assert ("hubcache_username" in sentence) is (credential == "anonymous")


@pytest.mark.parametrize(
    ("reason", "idle", "requests", "age", "is_problem"),
    [
        (Reason.SPACE, 3600.0, 2.0, 60.0, True),
        (Reason.SPACE, 3600.0, 1.0, 60.0, False),
        (Reason.SPACE, 90_000.0, 2.0, 60.0, False),
        (Reason.SPACE, 3600.0, 2.0, 90_000.0, False),
        (Reason.SPACE, 3600.0, 2.0, -60.0, False),
        (Reason.PURGED, 3600.0, 2.0, 60.0, False),
        (Reason.IDLE, 3600.0, 2.0, 60.0, False),
    ],
)
def test_store_is_too_small_when_content_in_use_is_removed_for_space(
    reason: Reason, idle: float, requests: float, age: float, is_problem: bool
) -> None:
    removal = Removal(NOW - age, Eviction(KEY, 3 << 30, reason, 0.0, requests, idle))
    found = list(problems.space_problems([removal, removal], NOW))
    assert bool(found) is is_problem
    assert not found or "2 objects (6.0 GiB)" in found[0]


def test_damage_is_a_problem_from_the_first_object() -> None:
    assert list(problems.damage_problems(0)) == []
    assert one(problems.damage_problems(1)).startswith("1 stored object was damaged")
    assert one(problems.damage_problems(2)).startswith("2 stored objects were damaged")


def test_bucket_that_does_not_answer_is_a_problem() -> None:
    assert list(problems.fleet_problems(None, public=False)) == []
    assert list(problems.fleet_problems({"problem": None}, public=False)) == []
    assert "bucket of its fleet: status 403." in one(problems.fleet_problems({"problem": "status 403"}, public=False))
    assert "403" not in one(problems.fleet_problems({"problem": "status 403"}, public=True))
