"""Which node is asked for the blobs of a repository, and for how long."""

from hubcache.fleet.leaders import Leaders
from support.fleet import KnownNodes, TestNode

HOST, REPO = "registry-1.docker.io", "library/app"
ME, OTHER = TestNode("me", "http://127.0.0.1:1"), TestNode("other", "http://127.0.0.1:2")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def leaders(clock: Clock | None = None) -> Leaders:
    return Leaders(KnownNodes(ME, [OTHER]), clock or Clock())


def found(leaders: Leaders, repository: str = REPO) -> str | None:
    node = leaders.find(HOST, repository)
    return None if node is None else node.address


def test_node_that_fetched_a_manifest_is_the_leader_of_its_repository() -> None:
    known = leaders()
    assert found(known) is None
    known.record(HOST, REPO, "other", age=0.0)
    assert found(known) == OTHER.address
    assert found(known, "library/another") is None


def test_last_node_that_fetched_a_manifest_is_the_leader() -> None:
    known = leaders()
    known.record(HOST, REPO, "other", age=0.0)
    known.record(HOST, REPO, "me", age=0.0)
    assert found(known) is None, "this node asks itself for nothing"


def test_node_that_is_not_live_is_no_leader() -> None:
    known = leaders()
    known.record(HOST, REPO, "gone", age=0.0)
    assert found(known) is None


def test_old_manifest_shows_no_leader() -> None:
    clock = Clock()
    known = leaders(clock)
    known.record(HOST, REPO, "other", age=121.0)
    assert found(known) is None
    known.record(HOST, REPO, "other", age=119.0)
    assert found(known) == OTHER.address
    clock.now = 2.0
    assert found(known) is None


def test_node_that_did_not_answer_is_avoided_for_some_time() -> None:
    clock = Clock()
    known = leaders(clock)
    known.record(HOST, REPO, "other", age=0.0)
    known.avoid("other")
    clock.now = 29.0
    assert found(known) is None
    clock.now = 31.0
    assert found(known) == OTHER.address
