"""What is measured. Each workload gives figures by name for one server and one round.

Figures end in their unit; MB and GB are powers of ten. `peak MB` is the resident memory of the server's largest process
and `all MB` the proportional memory of all; `upstream x` is the body bytes fetched from the upstream over those of the
content.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from .clients import Download, download, hammer, pull
from .images import Content
from .processes import BenchError, watched
from .servers import CACHES, MANY_BLOBS, Server
from .stats import percentile
from .upstream import UPLINK_RATE, Upstream

MB = 1_000_000
_LAYERS = (150, 80, 60, 40, 25, 15, 12, 8, 5, 3, 1, 1)
"""MB of each layer of the image that is pulled: 400 in all, one much larger than the rest, as in real images."""


@dataclass(slots=True)
class Scene:
    """The content of one workload, and which servers have been given which of it. `quick` asks for less."""

    upstream: Upstream
    quick: bool
    _contents: dict[str, Content] = field(default_factory=dict)
    _warm: set[tuple[str, Content]] = field(default_factory=set)

    def blob(self, name: str, size: int, *, sparse: bool = False) -> Content:
        """The blob of this name, made at its first use."""
        if name not in self._contents:
            self._contents[name] = self.upstream.images.blob(name, size, sparse=sparse)
        return self._contents[name]

    def image(self, name: str, layers: Sequence[int] = ()) -> Content:
        """The image of this name, made at its first use; without `layers` the usual one of 400 MB, or a quarter."""
        if name not in self._contents:
            usual = [size * MB // (4 if self.quick else 1) for size in _LAYERS]
            self._contents[name] = self.upstream.images.image(name, list(layers) or usual)
        return self._contents[name]

    def warm(self, server: Server, content: Content) -> None:
        """See to it that the server has this."""
        if (server.name, content) not in self._warm:
            tag = [f"/v2/{content.name}/manifests/{content.tag}"] if content.tag else []
            download(server, [[*tag, *content.paths]])
            self.upstream.since(0)
            self._warm.add((server.name, content))


Figures = dict[str, float]
Measure = Callable[[Scene, Server, int], Figures]


@contextmanager
def _costs(server: Server, figures: Figures, size: int) -> Iterator[None]:
    """Add what the server used while the block ran to serve `size` bytes."""
    with watched(server.pid) as cost:
        yield
    figures |= {"CPU s/GB": cost.cpu / (size / 1e9), "peak MB": cost.rss / MB, "all MB": cost.pss / MB}


def _rate(downloads: Sequence[Download]) -> float:
    began = min(one.started for one in downloads)
    return sum(one.bytes for one in downloads) / MB / (max(one.ended for one in downloads) - began)


def _warm(clients: int, *, image: bool) -> Measure:
    def measure(scene: Scene, server: Server, _: int) -> Figures:
        content = scene.image("bench/warm-image") if image else scene.blob("bench/warm", 400 * MB)
        scene.warm(server, content)
        paths = content.paths * (3 if clients == 1 else 1)
        figures: Figures = {}
        with _costs(server, figures, clients * content.size * len(paths) // len(content.paths)):
            downloads = download(server, [paths] * clients, parallel=3 if image else 1)
        return {"MB/s": _rate(downloads)} | figures

    return measure


def _small(*, manifest: bool, keep_alive: bool) -> Measure:
    def measure(scene: Scene, server: Server, _: int) -> Figures:
        content = scene.image("bench/small-image", [1000] * 5) if manifest else scene.blob("bench/small", 4096)
        scene.warm(server, content)
        with watched(server.pid) as cost:
            load = hammer(server, content.paths[0], 8, 2 if scene.quick else 5, keep_alive=keep_alive)
        count = len(load.first_bytes)
        return {
            "requests/s": count / load.seconds,
            "p50 ms": percentile(load.first_bytes, 50) * 1e3,
            "p99 ms": percentile(load.first_bytes, 99) * 1e3,
            "CPU ms/request": cost.cpu / count * 1e3,
            "peak MB": cost.rss / MB,
            "all MB": cost.pss / MB,
        }

    return measure


def _many(scene: Scene, server: Server, _: int) -> Figures:
    """A client at a time, so that nobody waits but for the answer itself."""
    content = scene.blob("bench/small", 4096)
    scene.warm(server, content)
    load = hammer(server, content.paths[0], 1, 2 if scene.quick else 5, keep_alive=True)
    return {"p50 ms": percentile(load.first_bytes, 50) * 1e3, "start s": server.started_in}


def _memory(blobs: int, *, warm: bool) -> Measure:
    def measure(scene: Scene, server: Server, number: int) -> Figures:
        size = (250 if scene.quick else 1000) * MB
        contents = [scene.blob(f"bench/large-{number}-{n}", size, sparse=True) for n in range(blobs)]
        for content in contents if warm else ():
            scene.warm(server, content)
        mark = scene.upstream.mark()
        figures: Figures = {}
        with _costs(server, figures, 32 * size):
            downloads = download(server, [contents[n % blobs].paths for n in range(32)], timeout=120)
        return {"MB/s": _rate(downloads), "upstream x": scene.upstream.since(mark).bytes / (blobs * size)} | figures

    return measure


def _cold(*, image: bool, others: int = 0) -> Measure:
    """One client, then 24 on other content of the same size; meanwhile 8 clients pull `others`, small images."""

    def measure(scene: Scene, server: Server, number: int) -> Figures:
        names = [f"uplink/{kind}-{number}" for kind in ("lone", "shared")]
        blob_size = (100 if scene.quick else 200) * MB
        lone, shared = (scene.image(name) if image else scene.blob(name, blob_size) for name in names)
        crowd = [scene.image(f"bench/other-{number}-{n}", [200_000, 50_000, 2_000]) for n in range(others)]
        orders = [shared.paths] * 24
        orders += [tuple(path for one in crowd[n::8] for path in one.paths) for n in range(8 if crowd else 0)]
        patience = max(20.0, 10 * shared.size / UPLINK_RATE)  # ten times the least that is possible
        alone = download(server, [lone.paths], parallel=3, timeout=patience)[0].seconds
        scene.upstream.since(0)
        mark = scene.upstream.mark()
        figures: Figures = {}
        with _costs(server, figures, 24 * shared.size + sum(one.size for one in crowd)):
            downloads = download(server, orders, parallel=3, timeout=patience)[:24]
        traffic = scene.upstream.since(mark)
        last = max(one.seconds for one in downloads)
        figures = {
            "lone s": alone,
            "last s": last,
            "last/lone": last / alone,
            "upstream requests": traffic.requests,
            "upstream x": traffic.bytes / (shared.size + sum(one.size for one in crowd)),
        } | figures
        if not image:
            fetches = traffic.fetches(shared.paths[0])
            if not fetches:
                raise BenchError("the new blob was not fetched")
            there = min(fetch.start for fetch in fetches)
            figures["fetches"] = len(fetches)
            figures["first byte ms"] = max(one.first_byte - there for one in downloads) * 1e3
            # Not before a client has asked: 24 programs take longer to start on two cores than to be answered.
            figures["waited ms"] = max(one.first_byte - max(there, one.requested) for one in downloads) * 1e3
        return figures

    return measure


def _pull(prefix: str, *, warm: bool) -> Measure:
    def measure(scene: Scene, server: Server, number: int) -> Figures:
        image = scene.image(f"{prefix}/pull-{0 if warm else number}")
        if warm and server.name != "direct":
            scene.warm(server, image)
        mark = scene.upstream.mark()
        figures: Figures = {}
        with _costs(server, figures, image.size):
            seconds = pull(server, image)
        traffic = scene.upstream.since(mark)
        fetched = {"upstream requests": traffic.requests, "upstream x": traffic.bytes / image.size}
        return {"s": seconds} | fetched | figures

    return measure


@dataclass(frozen=True, slots=True)
class Workload:
    """`servers` are those that it is run with unless the user chooses; `rounds` limits what takes long."""

    name: str
    about: str
    measure: Measure
    servers: tuple[str, ...]
    rounds: int = 99


_SERVING = (*CACHES[:2], "nginx", *CACHES[2:])
_PULLING = (*CACHES[:2], "direct", *CACHES[2:])

WORKLOADS = (
    Workload("warm-blob-1", "stored 400 MB blob, 1 client", _warm(1, image=False), _SERVING),
    Workload("warm-blob-8", "stored 400 MB blob, 8 clients", _warm(8, image=False), _SERVING),
    Workload("warm-image-1", "stored image, 1 client", _warm(1, image=True), _SERVING),
    Workload("warm-image-8", "stored image, 8 clients", _warm(8, image=True), _SERVING),
    Workload("blob-new", "stored 4 KB blob, new connections", _small(manifest=False, keep_alive=False), _SERVING),
    Workload("blob-kept", "stored 4 KB blob, kept connections", _small(manifest=False, keep_alive=True), _SERVING),
    Workload("manifest-new", "stored manifest, new connections", _small(manifest=True, keep_alive=False), _SERVING),
    Workload("manifest-kept", "stored manifest, kept connections", _small(manifest=True, keep_alive=True), _SERVING),
    Workload("cold-blob", "new blob, uplink of 50 MB/s, 1 and then 24 clients", _cold(image=False), CACHES),
    Workload("cold-image", "new image, uplink of 50 MB/s, 1 and then 24 clients", _cold(image=True), CACHES),
    Workload("mixed", "as cold-image, and 200 small images are pulled", _cold(image=True, others=200), CACHES),
    Workload("cold-pull", "new image by skopeo, upstream as fast as it can", _pull("bench", warm=False), _PULLING),
    Workload("cold-pull-gigabit", "new image by skopeo, uplink of 1 Gbit/s", _pull("gigabit", warm=False), _PULLING),
    Workload("cold-pull-uplink", "new image by skopeo, uplink of 50 MB/s", _pull("uplink", warm=False), _PULLING),
    Workload("warm-pull", "stored image by skopeo", _pull("bench", warm=True), _PULLING),
    Workload(
        "many-blobs", f"stored 4 KB blob, beside {MANY_BLOBS:,} others in ours-many", _many, ("ours", "ours-many")
    ),
    Workload("memory-warm", "32 clients of one stored 1 GB blob", _memory(1, warm=True), CACHES[:2], 1),
    Workload("memory-cold", "32 clients of four new 1 GB blobs", _memory(4, warm=False), CACHES[:2], 1),
)
