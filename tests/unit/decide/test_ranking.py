"""A ranking gives its keys in order, whatever was added and discarded, and however many there are."""

import random

import pytest
from hubcache.decide.ranking import Entry, Ranking
from hypothesis import given
from hypothesis import strategies as st

RANKS = st.lists(st.floats(-1e9, 1e9) | st.integers(0, 3).map(float), max_size=50)


def keys(ranking: Ranking[int]) -> list[int]:
    return [key for _, _, key in ranking]


@given(RANKS, RANKS)
def test_keys_come_by_rank_and_of_equal_ranks_in_the_order_of_adding(filled: list[float], added: list[float]) -> None:
    ranking = Ranking[int]()
    ranking.fill(enumerate(filled))
    for key, rank in enumerate(added, len(filled)):
        ranking.add(key, rank)
    ranks = filled + added
    assert keys(ranking) == sorted(range(len(ranks)), key=lambda key: ranks[key])
    assert len(ranking) == len(ranks)


@given(RANKS, st.randoms())
def test_filling_tells_the_places_in_the_order_of_the_argument(ranks: list[float], chance: random.Random) -> None:
    ranking = Ranking[int]()
    ranking.add(99, 0.0)
    places = ranking.fill(enumerate(ranks))
    assert [place[::2] for place in places] == [(rank, key) for key, rank in enumerate(ranks)]
    chance.shuffle(places)
    for left, place in enumerate(reversed(places), 1):
        assert len(ranking) == len(places) - left + 1
        ranking.discard(place)
    assert keys(ranking) == []


def test_what_is_not_there_cannot_be_discarded() -> None:
    ranking = Ranking[int]()
    place = ranking.add(1, 1.0)
    ranking.discard(place)
    for wrong in (place, (0.0, 5, 1)):
        with pytest.raises(KeyError):
            ranking.discard(wrong)


def test_a_long_ranking_under_change_stays_in_order() -> None:
    chance, ranking = random.Random(1), Ranking[int]()
    places: dict[int, Entry[int]] = {key: ranking.add(key, chance.random()) for key in range(5000)}
    for _ in range(20000):
        key = chance.randrange(6000)
        if key in places:
            ranking.discard(places.pop(key))
        if chance.random() < 0.6:
            places[key] = ranking.add(key, chance.random())
    assert list(ranking) == sorted(places.values())
