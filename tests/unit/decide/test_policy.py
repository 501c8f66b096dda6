"""Tags are fresh only within their lifetime, and stale when the clock was set back before their validation."""

import pytest
from hubcache.decide.policy import VISIBILITY_LIFETIME, Freshness, freshness, is_public
from hubcache.decide.records import TagRecord, Visibility
from hubcache.oci.digest import Digest
from hypothesis import given
from hypothesis import strategies as st

TIMES = st.floats(0, 1e10)


def validated(at: float) -> TagRecord:
    return TagRecord(Digest.of(b"manifest"), "a/b", 8, at)


def test_unknown_tag_is_absent() -> None:
    assert freshness(None, 1000.0, 60.0) is Freshness.ABSENT


@pytest.mark.parametrize(
    ("age", "expected"),
    [(0.0, Freshness.FRESH), (59.9, Freshness.FRESH), (60.0, Freshness.STALE), (1e9, Freshness.STALE),
     (-0.1, Freshness.STALE), (-1e9, Freshness.STALE)],
)  # fmt: skip
def test_tag_is_fresh_from_its_validation_to_the_end_of_its_lifetime(age: float, expected: Freshness) -> None:
    assert freshness(validated(1e9), 1e9 + age, 60.0) is expected


@given(TIMES, TIMES)
def test_tag_with_a_lifetime_of_zero_is_never_fresh(validated_at: float, now: float) -> None:
    assert freshness(validated(validated_at), now, 0) is Freshness.STALE


@given(TIMES, TIMES, st.floats(0, 1e6), st.floats(0, 1e6))
def test_longer_lifetime_never_makes_a_tag_stale(at: float, now: float, lifetime: float, more: float) -> None:
    if freshness(validated(at), now, lifetime) is Freshness.FRESH:
        assert freshness(validated(at), now, lifetime + more) is Freshness.FRESH


@pytest.mark.parametrize(
    ("age", "usual", "outage"),
    [
        (0, True, True),
        (VISIBILITY_LIFETIME - 1, True, True),
        (VISIBILITY_LIFETIME, False, True),
        (VISIBILITY_LIFETIME + 100, False, False),
        (-1, False, True),
    ],
)
def test_repository_counts_as_public_for_its_lifetime_and_longer_in_an_outage(
    age: float, usual: bool, outage: bool
) -> None:
    """It also does after the clock was set back: in an outage the upstream cannot be asked again."""
    visibility = Visibility(True, 1e9)
    assert is_public(visibility, 1e9 + age) is usual
    assert is_public(visibility, 1e9 + age, max_stale=100) is outage
    assert not is_public(Visibility(False, 1e9), 1e9 + age, max_stale=100)
