"""A ranking returns its keys in order after any additions and removals."""

import random

import pytest
from hubcache.decide.ranking import Entry, Ranking
from hypothesis import given
from hypothesis import strategies as st

RANKS = st.lists(st.floats(-1e9, 1e9) | st.integers(0, 3).map(float), max_size=50)


def keys(ranking: Ranking[int]) -> list[int]:
    return [key for _, _, key in ranking]


@given(RANKS, RANKS)
def test_keys_are_in_the_order_of_rank_and_then_of_addition(filled: list[float], added: list[float]) -> None:
    ranking = Ranking[int]()
    ranking.fill(enumerate(filled))
    for key, rank in enumerate(added, len(filled)):
        ranking.add(key, rank)
    ranks = filled + added
    assert keys(ranking) == sorted(range(len(ranks)), key=lambda key: ranks[key])
    assert len(ranking) == len(ranks)


@given(RANKS, st.randoms())
def test_fill_returns_the_entries_in_the_order_of_its_argument(ranks: list[float], generator: random.Random) -> None:
    ranking = Ranking[int]()
    ranking.add(99, 0.0)
    entries = ranking.fill(enumerate(ranks))
    assert [entry[::2] for entry in entries] == [(rank, key) for key, rank in enumerate(ranks)]
    generator.shuffle(entries)
    for left, entry in enumerate(reversed(entries), 1):
        assert len(ranking) == len(entries) - left + 1
        ranking.discard(entry)
    assert keys(ranking) == []


def test_discarding_an_entry_that_is_not_in_the_ranking_raises() -> None:
    ranking = Ranking[int]()
    entry = ranking.add(1, 1.0)
    ranking.discard(entry)
    for wrong in (entry, (0.0, 5, 1)):
        with pytest.raises(KeyError):
            ranking.discard(wrong)


def test_long_ranking_stays_in_order_during_changes() -> None:
    generator, ranking = random.Random(1), Ranking[int]()
    entries: dict[int, Entry[int]] = {key: ranking.add(key, generator.random()) for key in range(5000)}
    for _ in range(20000):
        key = generator.randrange(6000)
        if key in entries:
            ranking.discard(entries.pop(key))
        if generator.random() < 0.6:
            entries[key] = ranking.add(key, generator.random())
    assert list(ranking) == sorted(entries.values())
