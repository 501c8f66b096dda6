"""scripts/bench: clients that retry, and the workload in which a node of a fleet is killed."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from benchlib.accesslog import Entry
from benchlib.bucket import Bucket
from benchlib.fleet import Fleet
from benchlib.fleet_kill import FLEET_KILL, NodeTraffic, pull_and_kill
from benchlib.images import Content, Images
from benchlib.processes import BenchError
from benchlib.retrying_client import ATTEMPTS, Progress, PullFailed, RetryingClient
from benchlib.server import Server
from benchlib.upstream import Upstream
from benchlib.workload import Contents

BODY = bytes(range(256)) * 4000
DIGEST = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
PATH = f"/v2/library/a/blobs/{DIGEST}"


class StandInNode:
    """A node without TLS, which has the content of a directory.

    It ends each connection after `breaks_after` bytes of a body, but not before `may_break` is set. `ranges` has the
    header `Range` of each request. With `status`, it sends no body.
    """

    def __init__(
        self, root: Path, *, breaks_after: int | None = None, status: int = 0, ignores_ranges: bool = False
    ) -> None:
        self.breaks_after, self.status, self.ignores_ranges = breaks_after, status, ignores_ranges
        self.ranges: list[str | None] = []
        self.may_break = threading.Event()
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                node.answer(self, (root / self.path.removeprefix("/")).read_bytes())

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server = Server("node", 1, f"http://127.0.0.1:{self.listener.server_port}", "", root)
        self._thread = threading.Thread(target=self.listener.serve_forever, args=(0.02,))

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        wanted = request.headers["Range"]
        self.ranges.append(wanted)
        is_part = bool(wanted) and not self.ignores_ranges
        if is_part:
            body = body[int(wanted.removeprefix("bytes=").removesuffix("-")) :]
        request.send_response(self.status or (206 if is_part else 200))
        request.send_header("Content-Length", "0" if self.status else str(len(body)))
        request.end_headers()
        if not self.status:
            request.wfile.write(body[: self.breaks_after])
        if self.breaks_after is not None:
            request.wfile.flush()
            assert self.may_break.wait(30)

    def __enter__(self) -> "StandInNode":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.may_break.set()
        self.listener.shutdown()
        self._thread.join()
        self.listener.server_close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory that has the blob."""
    file = tmp_path / PATH.removeprefix("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(BODY)
    return tmp_path


def broken(root: Path, after: int) -> StandInNode:
    node = StandInNode(root, breaks_after=after)
    node.may_break.set()
    return node


def receive(*nodes: Server) -> Progress:
    progress = Progress(len(BODY))
    RetryingClient(nodes, progress).receive(PATH, DIGEST)
    return progress


def test_rest_of_a_body_that_broke_off_is_requested_from_the_next_node(stack: ExitStack, root: Path) -> None:
    first, second = stack.enter_context(broken(root, 600_000)), stack.enter_context(StandInNode(root))
    progress = receive(first.server, second.server)
    assert first.ranges == [None]
    assert second.ranges == ["bytes=600000-"]
    assert progress.received == len(BODY)
    assert progress.failed_attempts == 1
    assert progress.half.is_set()


def test_bytes_that_were_received_are_skipped_if_the_range_is_ignored(stack: ExitStack, root: Path) -> None:
    first = stack.enter_context(broken(root, 600_000))
    second = stack.enter_context(StandInNode(root, ignores_ranges=True))
    assert receive(first.server, second.server).received == len(BODY)


def test_next_node_is_used_when_a_connection_is_refused_and_remains_in_use(stack: ExitStack, root: Path) -> None:
    refusing = stack.enter_context(socket.socket())
    refusing.bind(("127.0.0.1", 0))  # and does not listen
    first = Server("node", 1, f"http://127.0.0.1:{refusing.getsockname()[1]}", "", root)
    second = stack.enter_context(StandInNode(root))
    progress = Progress(2 * len(BODY))
    client = RetryingClient([first, second.server], progress)
    client.receive(PATH, DIGEST)
    client.receive(PATH, DIGEST)
    assert second.ranges == [None, None]
    assert progress.failed_attempts == 1


def test_client_gives_up_after_five_attempts(stack: ExitStack, root: Path) -> None:
    node = stack.enter_context(broken(root, 0))
    with pytest.raises(PullFailed, match=f"1024000 bytes are missing, after {ATTEMPTS} attempts"):
        receive(node.server)
    assert len(node.ranges) == ATTEMPTS == 5


def test_server_error_is_retried_and_a_refusal_is_not(stack: ExitStack, root: Path) -> None:
    failing, refusing = (stack.enter_context(StandInNode(root, status=status)) for status in (502, 404))
    with pytest.raises(PullFailed, match="status 404"):
        receive(failing.server, refusing.server, failing.server)
    assert (len(failing.ranges), len(refusing.ranges)) == (1, 1)


def test_wrong_body_is_a_failed_pull(stack: ExitStack, root: Path) -> None:
    (root / PATH.removeprefix("/")).write_bytes(bytes(len(BODY)))
    node = stack.enter_context(StandInNode(root))
    with pytest.raises(PullFailed, match="a wrong body of 1024000 bytes"):
        receive(node.server)
    assert len(node.ranges) == 1


def test_body_without_a_length_is_a_failed_pull(stack: ExitStack, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseHTTPRequestHandler, "send_header", lambda *_: None)
    node = stack.enter_context(StandInNode(root))
    with pytest.raises(PullFailed, match="no Content-Length"):
        receive(node.server)


class StandInBucket(Bucket):
    """A bucket in which the second node has two leases, and the first has one."""

    def leased_blobs(self) -> dict[str, set[str]]:
        return {"http://peer-0": {"sha256:a"}, "http://peer-1": {"sha256:b", "sha256:c"}}


class EmptyBucket(Bucket):
    """A bucket without leases."""

    def leased_blobs(self) -> dict[str, set[str]]:
        return {}


def fleet_of(*nodes: StandInNode, bucket: Bucket | None = None) -> Fleet:
    class StandInFleet(Fleet):
        def kill(self, number: int) -> None:
            if nodes[number].breaks_after is not None:
                nodes[number].breaks_after = 0
                nodes[number].may_break.set()

    return StandInFleet(
        *("fleet", 1, "", "", Path()),
        nodes=[node.server for node in nodes],
        peer_addresses=("http://peer-0", "http://peer-1"),
        bucket=bucket or StandInBucket({}, 1),
        start_node=lambda number: nodes[number].server,
    )


@pytest.fixture
def image(tmp_path: Path) -> Content:
    return Images(tmp_path).image("library/b", [300_000, 400_000])


def test_node_that_fetches_most_is_killed_and_its_client_goes_on_at_another_one(
    stack: ExitStack, tmp_path: Path, image: Content
) -> None:
    nodes = StandInNode(tmp_path), StandInNode(tmp_path, breaks_after=100_000)
    fleet = fleet_of(*(stack.enter_context(node) for node in nodes))
    # Half of all bytes is more than this image and one part of a layer, and less than this image and both parts.
    other = Images(tmp_path).image("library/c", [340_000])
    killed = pull_and_kill(fleet, [[other], [image]])
    assert killed.failures == []
    assert (killed.node, killed.unfinished) == (1, {"sha256:b", "sha256:c"})
    assert sorted(one for one in nodes[0].ranges if one) == ["bytes=100000-"] * 2
    assert killed.progress.failed_attempts == 2


def test_failed_pull_is_reported_with_its_reason(stack: ExitStack, tmp_path: Path, image: Content) -> None:
    broken_layer = tmp_path / image.paths[-1].removeprefix("/")
    nodes = StandInNode(tmp_path), StandInNode(tmp_path, breaks_after=100_000)
    fleet = fleet_of(*(stack.enter_context(node) for node in nodes))
    other = Images(tmp_path).image("library/c", [900_000])
    broken_layer.write_bytes(bytes(400_000))
    killed = pull_and_kill(fleet, [[other], [image]])
    (failure,) = killed.failures
    assert "a wrong body of 400000 bytes" in failure


def test_kill_that_disturbed_nothing_is_no_measurement(stack: ExitStack, tmp_path: Path, image: Content) -> None:
    nodes = [stack.enter_context(StandInNode(tmp_path)) for _ in range(2)]
    with pytest.raises(BenchError, match="fetched no blob, or served no client"):
        pull_and_kill(fleet_of(*nodes), [[image], [image]])
    slow = stack.enter_context(StandInNode(tmp_path, breaks_after=100_000))
    with pytest.raises(BenchError, match="fetched no blob, or served no client"):
        pull_and_kill(fleet_of(slow, nodes[0], bucket=EmptyBucket({}, 1)), [[image], [image]])


def test_pulls_that_fail_before_the_kill_end_the_measurement(stack: ExitStack, tmp_path: Path, image: Content) -> None:
    nodes = [stack.enter_context(StandInNode(tmp_path, status=404)) for _ in range(2)]
    with pytest.raises(BenchError, match=r"pulls failed before a node was killed: .*status 404"):
        pull_and_kill(fleet_of(*nodes), [[image], [image]])


def entry(uri: str, start: float, size: int, server: str = "cdn") -> Entry:
    return Entry(start, uri, 200, size, server)


def test_bytes_that_were_sent_again_because_of_the_kill_are_counted_apart_from_others() -> None:
    entries = [
        entry("/resumed", 1, 60),
        entry("/resumed", 11, 40),
        entry("/again", 2, 80),
        entry("/again", 12, 100),
        entry("/thrice", 3, 100),
        entry("/thrice", 13, 100),
        entry("/thrice", 14, 100),
        entry("/uploaded", 4, 100),
        entry("/uploaded", 15, 100),
        entry("/again", 5, 7, "registry"),
    ]
    sizes = dict.fromkeys(("/resumed", "/again", "/thrice", "/not-fetched"), 100)
    assert NodeTraffic.of(entries, sizes, killed_at=10) == NodeTraffic(60 + 80 + 100, 0 + 80 + 100)


def test_kill_needs_a_fleet(tmp_path: Path) -> None:
    contents = Contents(Upstream(Images(tmp_path), "", "", tmp_path / "log", 1), quick=True)
    with pytest.raises(BenchError, match="needs a fleet"):
        FLEET_KILL.measure(contents, Server("hubcache", 1, "", "", tmp_path), 0)
