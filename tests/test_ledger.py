"""The account in memory: sums are right after any sequence, and eviction works while the account changes under it."""

from hubcache.decide.records import Popularity
from hubcache.oci.digest import Digest
from hubcache.store.ledger import Ledger
from hypothesis import given
from hypothesis import strategies as st

NAMES = [Digest.of(bytes([number])) for number in range(6)]
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "manifest", "remove"]), st.sampled_from(NAMES), st.integers(0, 100),
              st.lists(st.sampled_from(NAMES), max_size=3)),
    max_size=20,
)  # fmt: skip


@given(STEPS)
def test_the_account_is_the_sum_of_what_is_stored(steps: list[tuple[str, Digest, int, list[Digest]]]) -> None:
    ledger, expected = Ledger(), dict[Digest, int]()
    for step, digest, size, children in steps:
        if step == "remove":
            ledger.remove(digest)
            expected.pop(digest, None)
        elif digest not in expected:
            ledger.add(digest, size, tuple(children) if step == "manifest" else None)
            expected[digest] = size
        assert ledger.sizes == expected
        assert ledger.stored == ledger.used == sum(expected.values())
        assert set(ledger.children) <= set(expected)
        inverse = {(child, parent) for parent, below in ledger.children.items() for child in below}
        assert {(child, parent) for child, above in ledger.parents.items() for parent in above} == inverse
        assert all(ledger.parents.values())


def test_content_stored_twice_counts_once_with_its_last_size() -> None:
    ledger = Ledger()
    ledger.add(NAMES[0], 10)
    ledger.add(NAMES[0], 7)
    assert ledger.used == 7


def test_removing_what_is_not_there_changes_nothing() -> None:
    ledger = Ledger()
    ledger.remove(NAMES[0])
    assert ledger.used == 0


def test_what_is_held_is_no_victim_until_everybody_released_it() -> None:
    ledger = Ledger()
    ledger.add(NAMES[0], 10)
    ledger.hold(NAMES[0])
    ledger.hold(NAMES[0])
    assert list(ledger.victims(0.0)) == []
    ledger.release(NAMES[0])
    assert list(ledger.victims(0.0)) == []
    ledger.release(NAMES[0])
    assert list(ledger.victims(0.0)) == [NAMES[0]]


def test_content_that_comes_into_use_while_victims_are_taken_is_spared() -> None:
    ledger = Ledger()
    for digest in NAMES[:3]:
        ledger.add(digest, 10)
    victims = ledger.victims(0.0)
    first = next(victims)
    held = next(digest for digest in NAMES[:3] if digest != first)
    ledger.hold(held)
    assert held not in list(victims)


def test_an_image_goes_whole_when_each_victim_is_removed_before_the_next_is_asked_for() -> None:
    """As the store does it: the account changes between two victims."""
    dull, dull_layer, loved, loved_layer = NAMES[:4]
    ledger = Ledger()
    for layer in (dull_layer, loved_layer):
        ledger.add(layer, 100)
    ledger.add(dull, 1, (dull_layer,))
    ledger.add(loved, 1, (loved_layer,))
    ledger.popularity[loved] = Popularity(10.0, 0.0)
    order = []
    for victim in ledger.victims(0.0):
        order.append(victim)
        ledger.remove(victim)
    assert order == [dull, dull_layer, loved, loved_layer]
