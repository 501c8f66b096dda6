"""The workloads. Each returns figures by name, for one server and one round.

The name of a figure ends in its unit; MB and GB are powers of ten. `peak MB` is the resident memory of the largest
process of the server, `all MB` the proportional memory of all its processes, and `upstream x` the number of body bytes
that were fetched from the upstream registry, as a multiple of the size of the content.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from .clients import download, pull, request_repeatedly
from .fleet_workloads import FLEET_WORKLOADS
from .processes import BenchError, measured_cost
from .server import Server
from .servers import CACHES, MANY_BLOBS, PLAIN
from .stats import percentile
from .upstream import UPLINK_RATE
from .workload import LAYERS, MB, Contents, Figures, Measure, Workload, rate

_CROWD, _CROWD_IMAGES = 50, 10
"""Machines of the workload `crowd`, and images that each of them pulls."""


@contextmanager
def _costs(server: Server, figures: Figures, size: int) -> Iterator[None]:
    """Add the resources that the server used during the block to serve `size` bytes."""
    with measured_cost(server.pid) as cost:
        yield
    figures |= {"CPU s/GB": cost.cpu / (size / 1e9), "peak MB": cost.rss / MB, "all MB": cost.pss / MB}


def _warm(clients: int, *, image: bool) -> Measure:
    def measure(contents: Contents, server: Server, _: int) -> Figures:
        content = contents.image("bench/warm-image") if image else contents.blob("bench/warm", 400 * MB)
        contents.store(server, content)
        paths = content.paths * (3 if clients == 1 else 1)
        figures: Figures = {}
        with _costs(server, figures, clients * content.size * len(paths) // len(content.paths)):
            downloads = download(server, [paths] * clients, parallel=3 if image else 1)
        return {"MB/s": rate(downloads)} | figures

    return measure


def _small(*, manifest: bool, keep_alive: bool) -> Measure:
    def measure(contents: Contents, server: Server, _: int) -> Figures:
        content = contents.image("bench/small-image", [1000] * 5) if manifest else contents.blob("bench/small", 4096)
        contents.store(server, content)
        with measured_cost(server.pid) as cost:
            load = request_repeatedly(server, content.paths[0], 8, 2 if contents.quick else 5, keep_alive=keep_alive)
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


def _many(contents: Contents, server: Server, _: int) -> Figures:
    """With a single client, so that the time to the first byte includes no waiting for other clients."""
    content = contents.blob("bench/small", 4096)
    contents.store(server, content)
    load = request_repeatedly(server, content.paths[0], 1, 2 if contents.quick else 5, keep_alive=True)
    return {"p50 ms": percentile(load.first_bytes, 50) * 1e3, "start s": server.started_in}


def _memory(blobs: int, *, warm: bool) -> Measure:
    def measure(contents: Contents, server: Server, number: int) -> Figures:
        size = (250 if contents.quick else 1000) * MB
        large = [contents.blob(f"bench/large-{number}-{n}", size, sparse=True) for n in range(blobs)]
        for content in large if warm else ():
            contents.store(server, content)
        log_size = contents.upstream.log_size()
        figures: Figures = {}
        with _costs(server, figures, 32 * size):
            downloads = download(server, [large[n % blobs].paths for n in range(32)], timeout=120)
        return {
            "MB/s": rate(downloads),
            "upstream x": contents.upstream.traffic_since(log_size).bytes / (blobs * size),
        } | figures

    return measure


def _cold(*, image: bool, others: int = 0) -> Measure:
    """A single client, then 24 clients with other content of the same size. Meanwhile 8 clients pull `others` small
    images."""

    def measure(contents: Contents, server: Server, number: int) -> Figures:
        names = [f"uplink/{kind}-{number}" for kind in ("single", "shared")]
        blob_size = (100 if contents.quick else 200) * MB
        single, shared = (contents.image(name) if image else contents.blob(name, blob_size) for name in names)
        small = [contents.image(f"bench/other-{number}-{n}", [200_000, 50_000, 2_000]) for n in range(others)]
        clients = [shared.paths] * 24
        clients += [tuple(path for one in small[n::8] for path in one.paths) for n in range(8 if small else 0)]
        timeout = max(20.0, 10 * shared.size / UPLINK_RATE)  # ten times the shortest possible time
        alone = download(server, [single.paths], parallel=3, timeout=timeout)[0].seconds
        contents.upstream.traffic_since(0)
        log_size = contents.upstream.log_size()
        figures: Figures = {}
        with _costs(server, figures, 24 * shared.size + sum(one.size for one in small)):
            downloads = download(server, clients, parallel=3, timeout=timeout)[:24]
        traffic = contents.upstream.traffic_since(log_size)
        last = max(one.seconds for one in downloads)
        figures = {
            "single s": alone,
            "last s": last,
            "last/single": last / alone,
            "upstream requests": traffic.requests,
            "upstream x": traffic.bytes / (shared.size + sum(one.size for one in small)),
        } | figures
        if not image:
            fetches = traffic.fetches(shared.paths[0])
            if not fetches:
                raise BenchError("the new blob was not fetched")
            available = min(fetch.start for fetch in fetches)
            figures["fetches"] = len(fetches)
            figures["first byte ms"] = max(one.first_byte - available for one in downloads) * 1e3
            # From the request at the earliest: on two cores, 24 clients take longer to start than to get a response.
            figures["waited ms"] = max(one.first_byte - max(available, one.requested) for one in downloads) * 1e3
        return figures

    return measure


def _crowd(contents: Contents, server: Server, number: int) -> Figures:
    """Machines that pull several images one after another, each machine beginning with another image. Half of the
    images are stored, the others come over an uplink of 1 Gbit/s."""
    layers = [size * MB // (20 if contents.quick else 10) for size in LAYERS]
    stored = [contents.image(f"bench/crowd-{n}", layers) for n in range(_CROWD_IMAGES // 2)]
    new = [contents.image(f"gigabit/crowd-{number}-{n}", layers) for n in range(_CROWD_IMAGES // 2)]
    for image in stored:
        contents.store(server, image)
    images = [image for pair in zip(stored, new, strict=True) for image in pair]
    clients = []
    for machine in range(_CROWD):
        first = machine % len(images)
        clients.append([path for image in images[first:] + images[:first] for path in image.paths])
    log_size = contents.upstream.log_size()
    figures: Figures = {}
    with _costs(server, figures, _CROWD * sum(image.size for image in images)):
        downloads = download(server, clients, parallel=3, timeout=600)
    return {
        "makespan s": max(one.seconds for one in downloads),
        "first byte p99 ms": percentile([wait for one in downloads for wait in one.waits], 99) * 1e3,
        "upstream x": contents.upstream.traffic_since(log_size).bytes / sum(image.size for image in new),
    } | figures


def _pull(prefix: str, *, warm: bool) -> Measure:
    def measure(contents: Contents, server: Server, number: int) -> Figures:
        image = contents.image(f"{prefix}/pull-{0 if warm else number}")
        if warm and server.name != "direct":
            contents.store(server, image)
        log_size = contents.upstream.log_size()
        figures: Figures = {}
        with _costs(server, figures, image.size):
            seconds = pull(server, image)
        traffic = contents.upstream.traffic_since(log_size)
        fetched = {"upstream requests": traffic.requests, "upstream x": traffic.bytes / image.size}
        return {"s": seconds} | fetched | figures

    return measure


_SERVING = (*CACHES[:2], "nginx", *CACHES[2:])
_PULLING = (*CACHES[:2], "direct", *CACHES[2:])

WORKLOADS = (
    Workload("warm-blob-1", "stored 400 MB blob, 1 client", _warm(1, image=False), _SERVING),
    Workload("warm-blob-8", "stored 400 MB blob, 8 clients", _warm(8, image=False), _SERVING),
    Workload("warm-image-1", "stored image, 1 client", _warm(1, image=True), _SERVING),
    Workload("warm-image-8", "stored image, 8 clients", _warm(8, image=True), _SERVING),
    Workload("blob-new", "stored 4 KB blob, new connections", _small(manifest=False, keep_alive=False), _SERVING),
    Workload(
        "blob-persistent", "stored 4 KB blob, persistent connections", _small(manifest=False, keep_alive=True), _SERVING
    ),
    Workload("manifest-new", "stored manifest, new connections", _small(manifest=True, keep_alive=False), _SERVING),
    Workload(
        "manifest-persistent",
        "stored manifest, persistent connections",
        _small(manifest=True, keep_alive=True),
        _SERVING,
    ),
    Workload("mirror-blob-1", "mirror without TLS: stored 400 MB blob, 1 client", _warm(1, image=False), PLAIN),
    Workload("mirror-blob-8", "mirror without TLS: stored 400 MB blob, 8 clients", _warm(8, image=False), PLAIN),
    Workload(
        "mirror-manifest-new",
        "mirror without TLS: stored manifest, new connections",
        _small(manifest=True, keep_alive=False),
        PLAIN,
    ),
    Workload(
        "mirror-manifest-persistent",
        "mirror without TLS: stored manifest, persistent connections",
        _small(manifest=True, keep_alive=True),
        PLAIN,
    ),
    Workload("cold-blob", "new blob, uplink of 50 MB/s, 1 client, then 24", _cold(image=False), CACHES),
    Workload("cold-image", "new image, uplink of 50 MB/s, 1 client, then 24", _cold(image=True), CACHES),
    Workload("mixed", "cold-image while 8 clients pull 200 small images", _cold(image=True, others=200), CACHES),
    Workload(
        "crowd",
        f"{_CROWD} machines pull {_CROWD_IMAGES} images of 12 layers, half of them new, uplink of 1 Gbit/s",
        _crowd,
        (*CACHES[:4], "hubcache-mitmweb"),
        3,
    ),
    Workload("cold-pull", "new image by skopeo, unlimited uplink", _pull("bench", warm=False), _PULLING),
    Workload("cold-pull-gigabit", "new image by skopeo, uplink of 1 Gbit/s", _pull("gigabit", warm=False), _PULLING),
    Workload("cold-pull-uplink", "new image by skopeo, uplink of 50 MB/s", _pull("uplink", warm=False), _PULLING),
    Workload("warm-pull", "stored image by skopeo", _pull("bench", warm=True), _PULLING),
    Workload(
        "many-blobs",
        f"stored 4 KB blob, 1 client; hubcache-many-blobs has {MANY_BLOBS:,} others",
        _many,
        ("hubcache", "hubcache-many-blobs"),
    ),
    Workload("memory-warm", "stored 1 GB blob, 32 clients", _memory(1, warm=True), CACHES[:2], 1),
    Workload("memory-cold", "four new 1 GB blobs, 32 clients", _memory(4, warm=False), CACHES[:2], 1),
    *FLEET_WORKLOADS,
)
