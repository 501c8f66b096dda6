"""The account of what the store holds."""

from hubcache.oci.digest import Digest
from hubcache.store.usage import BLOCK, Usage, on_disk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

A, B, C, D = (Digest.of(name) for name in (b"a", b"b", b"c", b"d"))
digests = st.sampled_from([A, B, C, D])
sizes = st.integers(0, 1 << 40)


@given(sizes)
def test_file_takes_whole_blocks(size: int) -> None:
    assert on_disk(size) % BLOCK == 0
    assert size <= on_disk(size) < size + BLOCK


def test_closure_is_the_manifest_and_all_below_it_once() -> None:
    ledger = Usage()
    ledger.add(A, 10, (B, C))
    ledger.add(B, 10, (C, D))
    assert ledger.closure([A]) == {A, B, C, D}
    assert ledger.closure([B, D]) == {B, C, D}
    assert ledger.closure([]) == frozenset()


def test_closure_of_manifests_that_refer_to_each_other_ends() -> None:
    ledger = Usage()
    ledger.add(A, 10, (B,))
    ledger.add(B, 10, (A,))
    assert ledger.closure([A]) == {A, B}


def test_manifest_that_is_gone_refers_to_nothing() -> None:
    ledger = Usage()
    ledger.add(A, 10, (B,))
    ledger.remove(A)
    assert ledger.closure([A]) == {A}


def test_pinned_content_is_kept() -> None:
    ledger = Usage()
    ledger.pinned = frozenset([A])
    assert ledger.keeps(A)
    assert not ledger.keeps(B)


class Accounts(RuleBasedStateMachine):
    """Whatever happens in whatever order, the sums are those of the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Usage()
        self.held: list[Digest] = []

    @rule(digest=digests, size=sizes)
    def add(self, digest: Digest, size: int) -> None:
        self.ledger.add(digest, size)

    @rule(digest=digests)
    def remove(self, digest: Digest) -> None:
        self.ledger.remove(digest)

    @rule()
    def clear(self) -> None:
        self.ledger.restore({}, {})

    @rule(digest=digests)
    def hold(self, digest: Digest) -> None:
        self.ledger.hold(digest)
        self.held.append(digest)

    @rule(digest=digests)
    def release(self, digest: Digest) -> None:
        if digest in self.held:
            self.held.remove(digest)
            self.ledger.release(digest)

    @rule(size=st.integers(0, 1 << 30))
    def reserve(self, size: int) -> None:
        self.ledger.reserved = size

    @invariant()
    def sums_are_those_of_the_parts(self) -> None:
        assert self.ledger.stored == sum(map(on_disk, self.ledger.sizes.values()))
        assert self.ledger.used == self.ledger.present + self.ledger.reserved
        assert self.ledger.present >= self.ledger.stored

    @invariant()
    def what_nobody_reads_counts_no_longer_than_it_is_stored(self) -> None:
        if not self.held:
            assert self.ledger.present == self.ledger.stored

    @invariant()
    def what_is_read_is_kept_until_the_last_reader_left(self) -> None:
        assert {digest for digest in (A, B, C, D) if self.ledger.keeps(digest)} == set(self.held)


TestAccounts = Accounts.TestCase
