"""Clients that pull images, verify each body against its digest, and retry after failures.

dockerd makes up to 5 attempts for each layer (`max-download-attempts`), with a pause before each, and containerd
continues at once. Both request the rest of a body whose transfer broke off (RFC 9110, section 14). These clients make
5 attempts for each body, without a pause, and each attempt after a failure goes to the next node, as a load balancer
would send it.
"""

import hashlib
import http.client
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from .images import MANIFEST_TYPE, Content
from .server import Server

ATTEMPTS = 5
_PARALLEL = 3
"""Layers that dockerd fetches at the same time."""
_SILENCE_SECONDS = 60
"""Longer than a node waits for other nodes before it asks the registry itself."""
_CHUNK = 64 << 10


class PullFailed(Exception):
    """A body could not be received, or was wrong. The message is for the user."""


class _BrokenOff(Exception):
    """An attempt failed; another one may succeed."""


class Progress:
    """What all clients have received so far. `half` is set when that is half of `expected` bytes."""

    def __init__(self, expected: int) -> None:
        self.half = threading.Event()
        self.received = 0
        self.failed_attempts = 0
        self.longest_wait = 0.0
        """Seconds between two pieces of a body, or between a request and the first one, that a client waited at most;
        retries included."""
        self._expected = expected
        self._lock = threading.Lock()

    def add(self, size: int, waited: float) -> None:
        """Count a piece of a body."""
        with self._lock:
            self.received += size
            self.longest_wait = max(self.longest_wait, waited)
        if 2 * self.received >= self._expected:
            self.half.set()

    def add_failed_attempt(self) -> None:
        """Count an attempt after which the client tried again or gave up."""
        with self._lock:
            self.failed_attempts += 1


class RetryingClient:
    """A client of several nodes. It uses the first one until an attempt fails there, and then the next one."""

    def __init__(self, nodes: Sequence[Server], progress: Progress) -> None:
        self._nodes = nodes
        self._progress = progress
        self._node = 0
        self._trust = {
            node.trust: ssl.create_default_context(cafile=node.trust / "ca.pem")
            for node in nodes
            if node.origin.startswith("https:")
        }

    def pull(self, image: Content) -> None:
        """Pull an image by its tag. Raises `PullFailed`."""
        manifest, *blobs = image.paths
        self.receive(f"/v2/{image.name}/manifests/{image.tag}", _digest(manifest))
        with ThreadPoolExecutor(_PARALLEL) as threads:
            for future in [threads.submit(self.receive, path, _digest(path)) for path in (manifest, *blobs)]:
                future.result()

    def receive(self, path: str, digest: str) -> None:
        """Receive and verify one body. Raises `PullFailed`."""
        sha256, size, since = hashlib.sha256(), 0, time.monotonic()
        problem = ""
        for _ in range(ATTEMPTS):
            number = self._node
            try:
                for piece in self._body(self._nodes[number], path, size):
                    sha256.update(piece)
                    size += len(piece)
                    now = time.monotonic()
                    self._progress.add(len(piece), now - since)
                    since = now
                break
            except (OSError, http.client.HTTPException, _BrokenOff) as error:
                problem = f"{path} from {self._nodes[number].name}: {error or type(error).__name__}"
                self._progress.add_failed_attempt()
                if self._node == number:  # else another body of this client failed there, too
                    self._node = (number + 1) % len(self._nodes)
        else:
            raise PullFailed(f"{problem}, after {ATTEMPTS} attempts")
        if f"sha256:{sha256.hexdigest()}" != digest:
            raise PullFailed(f"{path}: a wrong body of {size} bytes")

    def _body(self, node: Server, path: str, start: int) -> Iterator[bytes]:
        """Yield the pieces of a body from the byte `start` on."""
        connection = self._connection(node)
        try:
            headers = {"Accept": f"{MANIFEST_TYPE}, */*", "Connection": "close"}
            if start:
                headers["Range"] = f"bytes={start}-"
            connection.request("GET", urlsplit(node.origin).path + path, headers=headers)
            answer = connection.getresponse()
            if answer.status in (429, 500, 502, 503, 504):
                raise _BrokenOff(f"status {answer.status}")
            if answer.status not in (200, 206):
                raise PullFailed(f"{path} from {node.name}: status {answer.status}")
            if answer.length is None:
                raise PullFailed(f"{path} from {node.name}: the answer has no Content-Length")
            skipped = start if answer.status == 200 else 0  # a server may ignore the range
            while answer.length:
                piece = answer.read1(_CHUNK)
                if not piece:
                    raise _BrokenOff(f"{answer.length} bytes are missing")
                skipping = min(skipped, len(piece))
                skipped -= skipping
                if skipping < len(piece):
                    yield piece[skipping:]
        finally:
            connection.close()

    def _connection(self, node: Server) -> http.client.HTTPConnection:
        origin = urlsplit(node.origin)
        host, port = origin.hostname or "", origin.port
        first = urlsplit(f"//{node.proxy}") if node.proxy else origin
        address = first.hostname or "", first.port
        if node.trust in self._trust:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                *address, timeout=_SILENCE_SECONDS, context=self._trust[node.trust]
            )
        else:
            connection = http.client.HTTPConnection(*address, timeout=_SILENCE_SECONDS)
        if node.proxy:
            connection.set_tunnel(host, port)
        return connection


def _digest(path: str) -> str:
    return path.rpartition("/")[2]
