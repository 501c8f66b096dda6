"""What is given up for room: the least popular images, whole, and never what another image or a client needs."""

import itertools
from dataclasses import dataclass

import pytest
from hubcache.decide.records import Popularity
from hubcache.decide.retention import HALF_LIFE, decayed, requested, victims
from hubcache.oci.digest import Digest
from hypothesis import given
from hypothesis import strategies as st

NOW = 1e9
COUNTS = st.floats(0, 1e6)
AGES = st.floats(0, 1e8)


# -- popularity ------------------------------------------------------------------------------------------------------


@given(COUNTS, AGES)
def test_a_request_counts_half_after_each_half_life(count: float, age: float) -> None:
    known = Popularity(count, NOW - age)
    assert decayed(known, NOW + HALF_LIFE) == pytest.approx(decayed(known, NOW) / 2)


@given(COUNTS, AGES)
def test_a_clock_that_went_back_makes_nothing_more_popular(count: float, back: float) -> None:
    assert decayed(Popularity(count, NOW), NOW - back) == count


def test_what_was_never_asked_for_has_no_popularity() -> None:
    assert decayed(None, NOW) == 0.0
    assert requested(None, NOW) == Popularity(1.0, NOW)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_counting_step_by_step_is_the_sum_of_all_requests_decayed(gaps: list[float]) -> None:
    times = list(itertools.accumulate(gaps, initial=NOW))
    known = None
    for time in times:
        known = requested(known, time)
    each = [decayed(Popularity(1.0, time), times[-1]) for time in times]
    assert decayed(known, times[-1]) == pytest.approx(sum(each))


# -- victims ---------------------------------------------------------------------------------------------------------


@dataclass
class Shelf:
    """A made-up store: images that share layers, an index over some of them, and loose blobs."""

    children: dict[Digest, tuple[Digest, ...]]
    contents: set[Digest]
    popularity: dict[Digest, Popularity]
    kept: set[Digest]

    def __post_init__(self) -> None:
        self.parents: dict[Digest, set[Digest]] = {}
        for manifest, below in self.children.items():
            for child in below:
                self.parents.setdefault(child, set()).add(manifest)

    @property
    def roots(self) -> list[Digest]:
        return [digest for digest in self.children if not self.parents.get(digest)]

    def score(self, digest: Digest) -> float:
        return decayed(self.popularity.get(digest), NOW)

    def order(self) -> list[Digest]:
        return list(
            victims(
                self.contents, self.children, self.parents, self.popularity, NOW, lambda digest: digest in self.kept
            )
        )

    def below(self, digest: Digest) -> set[Digest]:
        found = {digest}
        for child in self.children.get(digest, ()):
            found |= self.below(child)
        return found


def name(kind: str, number: int) -> Digest:
    return Digest.of(f"{kind} {number}".encode())


@st.composite
def shelves(draw: st.DrawFn) -> Shelf:
    layers = [name("layer", number) for number in range(draw(st.integers(1, 6)))]
    images = [name("image", number) for number in range(draw(st.integers(1, 5)))]
    indexes = [name("index", number) for number in range(draw(st.integers(0, 2)))]
    children = {image: tuple(draw(st.lists(st.sampled_from(layers), max_size=4, unique=True))) for image in images}
    children |= {index: tuple(draw(st.lists(st.sampled_from(images), max_size=3, unique=True))) for index in indexes}
    known = list(children) + layers
    missing = draw(st.sets(st.sampled_from(layers), max_size=2))
    return Shelf(
        children,
        set(known) - missing,
        draw(st.dictionaries(st.sampled_from(known), st.builds(Popularity, COUNTS, st.just(NOW)))),
        draw(st.sets(st.sampled_from(known), max_size=2)),
    )


@given(shelves())
def test_only_what_is_stored_and_not_in_use_is_given_and_only_once(shelf: Shelf) -> None:
    order = shelf.order()
    assert len(order) == len(set(order))
    assert set(order) <= shelf.contents - shelf.kept


@given(shelves())
def test_whatever_is_not_needed_by_something_in_use_is_given_in_the_end(shelf: Shelf) -> None:
    given_up = set(shelf.order())
    for digest in shelf.contents - shelf.kept - given_up:
        assert any(parent not in given_up for parent in shelf.parents.get(digest, ()))


@given(shelves())
def test_the_order_frees_everything_when_nothing_is_in_use(shelf: Shelf) -> None:
    shelf.kept = set()
    assert set(shelf.order()) == shelf.contents


@given(shelves())
def test_wherever_the_caller_stops_no_manifest_is_left_without_its_content(shelf: Shelf) -> None:
    gone: set[Digest] = set()
    for digest in shelf.order():
        assert shelf.parents.get(digest, set()) <= gone, "content went before a manifest that needs it"
        gone.add(digest)


@given(shelves())
def test_a_more_popular_image_never_goes_before_a_less_popular_one(shelf: Shelf) -> None:
    roots = set(shelf.roots)
    scores = [shelf.score(digest) for digest in shelf.order() if digest in roots]
    assert scores == sorted(scores)


@given(shelves())
def test_an_image_goes_whole_before_the_next_one_is_touched(shelf: Shelf) -> None:
    shelf.kept = set()
    order, roots = shelf.order(), set(shelf.roots)
    given_roots = [digest for digest in order if digest in roots]
    for first, second in itertools.pairwise(given_roots):
        left = set().union(*(shelf.below(root) for root in given_roots[given_roots.index(second) :]))
        alone = (shelf.below(first) - left) & shelf.contents
        assert all(order.index(digest) < order.index(second) for digest in alone)


@given(shelves())
def test_content_that_no_manifest_needs_goes_before_any_image(shelf: Shelf) -> None:
    loose = {digest for digest in shelf.contents - set(shelf.children) if not shelf.parents.get(digest)} - shelf.kept
    assert set(shelf.order()[: len(loose)]) == loose


def test_of_two_images_with_one_request_each_the_one_not_asked_for_longest_goes_first() -> None:
    old, new = name("image", 1), name("image", 2)
    popularity = {old: Popularity(0.0, NOW - 100), new: Popularity(0.0, NOW)}
    for first, second in ((old, new), (new, old)):
        children: dict[Digest, tuple[Digest, ...]] = {first: (), second: ()}
        assert Shelf(children, {old, new}, popularity, set()).order() == [old, new]


def test_a_popular_image_does_not_go_because_the_index_above_it_is_not_popular() -> None:
    """Clients that pin a platform's digest ask for the image, never for the index that was pulled once."""
    index, pinned, other = name("index", 1), name("image", 1), name("image", 2)
    popularity = {index: Popularity(1.0, NOW), pinned: Popularity(50.0, NOW), other: Popularity(5.0, NOW)}
    order = Shelf({index: (pinned,), pinned: (), other: ()}, {index, pinned, other}, popularity, set()).order()
    assert order.index(other) < order.index(pinned)
