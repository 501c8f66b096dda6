"""The account of what the store holds."""

from hubcache.oci.digest import Digest
from hubcache.store.usage import BLOCK, Usage, size_on_disk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

A, B, C, D = (Digest.of(name) for name in (b"a", b"b", b"c", b"d"))
digests = st.sampled_from([A, B, C, D])
sizes = st.integers(0, 1 << 40)


@given(sizes)
def test_file_takes_whole_blocks(size: int) -> None:
    assert size_on_disk(size) % BLOCK == 0
    assert size <= size_on_disk(size) < size + BLOCK


def test_closure_is_the_manifest_and_all_below_it_once() -> None:
    usage = Usage()
    usage.add(A, 10, (B, C))
    usage.add(B, 10, (C, D))
    assert usage.closure([A]) == {A, B, C, D}
    assert usage.closure([B, D]) == {B, C, D}
    assert usage.closure([]) == frozenset()


def test_closure_of_manifests_that_refer_to_each_other_ends() -> None:
    usage = Usage()
    usage.add(A, 10, (B,))
    usage.add(B, 10, (A,))
    assert usage.closure([A]) == {A, B}


def test_manifest_that_is_gone_refers_to_nothing() -> None:
    usage = Usage()
    usage.add(A, 10, (B,))
    usage.remove(A)
    assert usage.closure([A]) == {A}


def test_pinned_content_is_kept() -> None:
    usage = Usage()
    usage.pinned = frozenset([A])
    assert usage.is_protected(A)
    assert not usage.is_protected(B)


class Accounts(RuleBasedStateMachine):
    """Whatever happens in whatever order, the sums are those of the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.usage = Usage()
        self.held: list[Digest] = []

    @rule(digest=digests, size=sizes)
    def add(self, digest: Digest, size: int) -> None:
        self.usage.add(digest, size)

    @rule(digest=digests)
    def remove(self, digest: Digest) -> None:
        self.usage.remove(digest)

    @rule()
    def clear(self) -> None:
        self.usage.restore({}, {})

    @rule(digest=digests)
    def begin_reading(self, digest: Digest) -> None:
        self.usage.begin_reading(digest)
        self.held.append(digest)

    @rule(digest=digests)
    def end_reading(self, digest: Digest) -> None:
        if digest in self.held:
            self.held.remove(digest)
            self.usage.end_reading(digest)

    @rule(size=st.integers(0, 1 << 30))
    def reserve(self, size: int) -> None:
        self.usage.reserved = size

    @invariant()
    def sums_are_those_of_the_parts(self) -> None:
        assert self.usage.stored == sum(map(size_on_disk, self.usage.sizes.values()))
        assert self.usage.used == self.usage.on_disk + self.usage.reserved
        assert self.usage.on_disk >= self.usage.stored

    @invariant()
    def what_nobody_reads_counts_no_longer_than_it_is_stored(self) -> None:
        if not self.held:
            assert self.usage.on_disk == self.usage.stored

    @invariant()
    def what_is_read_is_kept_until_the_last_reader_left(self) -> None:
        assert {digest for digest in (A, B, C, D) if self.usage.is_protected(digest)} == set(self.held)


TestAccounts = Accounts.TestCase
