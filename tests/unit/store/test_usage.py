"""The usage of the store."""

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


def test_closure_contains_the_manifest_and_all_that_it_refers_to() -> None:
    usage = Usage()
    usage.add(A, 10, (B, C))
    usage.add(B, 10, (C, D))
    assert usage.closure([A]) == {A, B, C, D}
    assert usage.closure([B, D]) == {B, C, D}
    assert usage.closure([]) == frozenset()


def test_closure_of_manifests_that_refer_to_each_other_is_finite() -> None:
    usage = Usage()
    usage.add(A, 10, (B,))
    usage.add(B, 10, (A,))
    assert usage.closure([A]) == {A, B}


def test_removed_manifest_refers_to_nothing() -> None:
    usage = Usage()
    usage.add(A, 10, (B,))
    usage.remove(A)
    assert usage.closure([A]) == {A}


def test_pinned_content_is_protected() -> None:
    usage = Usage()
    usage.pinned = frozenset([A])
    assert usage.is_protected(A)
    assert not usage.is_protected(B)


class UsageMachine(RuleBasedStateMachine):
    """The sums match their parts after any sequence of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.usage = Usage()
        self.being_read: list[Digest] = []

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
        self.being_read.append(digest)

    @rule(digest=digests)
    def end_reading(self, digest: Digest) -> None:
        if digest in self.being_read:
            self.being_read.remove(digest)
            self.usage.end_reading(digest)

    @rule(size=st.integers(0, 1 << 30))
    def reserve(self, size: int) -> None:
        self.usage.reserved = size

    @invariant()
    def sums_match_their_parts(self) -> None:
        assert self.usage.stored == sum(map(size_on_disk, self.usage.sizes.values()))
        assert self.usage.used == self.usage.on_disk + self.usage.reserved
        assert self.usage.on_disk >= self.usage.stored

    @invariant()
    def content_without_readers_counts_only_while_it_is_stored(self) -> None:
        if not self.being_read:
            assert self.usage.on_disk == self.usage.stored

    @invariant()
    def content_is_protected_until_its_last_reader_ends(self) -> None:
        assert {digest for digest in (A, B, C, D) if self.usage.is_protected(digest)} == set(self.being_read)


TestUsageMachine = UsageMachine.TestCase
