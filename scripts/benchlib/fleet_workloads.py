"""The workloads of a fleet. As in `workloads`, the name of a figure ends in its unit."""

import statistics
from collections.abc import Sequence

from .clients import download, download_from
from .cpu_groups import Periods, cpu_group
from .fleet import BUCKET_REQUESTS, CORES, MACHINE_CORES, NODES, REST_CORES, Fleet
from .fleet_kill import FLEET_KILL
from .images import Content
from .processes import BenchError, cpu_seconds, measured_cost, process_tree
from .server import Server
from .workload import MB, Contents, Figures, Workload, rate

_IMAGES = 200
_SMALL_LAYERS = (1_300_000, 500_000, 150_000, 40_000, 10_000)
"""Bytes of each layer of a small image: 2 MB in total, a tenth of that if `quick`."""

_CLIENTS = 4
"""Clients of each node, which share the images among them."""

_BUCKET_CORES = 0.2 * CORES
"""CPU time of the bucket's machine: it sends some 400 MB/s. Without a limit, it takes what the node and the client
need, which on machines of their own they would have."""

_PULLS = 5
_LONGEST = 600.0


def _new_images(contents: Contents, server: Server, number: int) -> Figures:
    """Without a fleet, one node has all clients."""
    nodes = server.nodes if isinstance(server, Fleet) else [server] * NODES
    return _pull_new_images(contents, server, nodes, number, _IMAGES)


def _new_images_limited(contents: Contents, server: Server, number: int) -> Figures:
    """Each node runs with its clients on a machine of its own, which is a limited part of this machine's CPU time.
    Without a fleet, it is one such machine, with as many clients as each of the fleet has."""
    others = process_tree(contents.upstream.pid)
    if isinstance(server, Fleet):
        others += process_tree(server.bucket.pid)
    nodes = server.nodes if isinstance(server, Fleet) else [server]
    machines = [node.machine for node in nodes if node.machine]
    before = [machine.periods() for machine in machines]
    with cpu_group(f"{server.name}-others", REST_CORES) as group, group.containing(others):
        figures = _pull_new_images(contents, server, nodes, number, _IMAGES // (4 if contents.quick else 1))
        throttled = group.periods().percent_since(Periods(0, 0))
    percents = [machine.periods().percent_since(one) for machine, one in zip(machines, before, strict=True)]
    # The result is that of the nodes if they were limited by their machines, and not by the registry or the bucket.
    return figures | {"throttled %": statistics.mean(percents), "others throttled %": throttled}


def _pull_new_images(contents: Contents, server: Server, nodes: Sequence[Server], number: int, count: int) -> Figures:
    """All images are pulled through each node at once, in the same order: nodes that begin at the same time want the
    same blob at the same time, which is the hardest case."""
    layers = [size // (10 if contents.quick else 1) for size in _SMALL_LAYERS]
    images = [contents.image(f"bench/fleet-{number}-{n}", layers) for n in range(count)]
    clients = [
        (node, [path for image in images[n::_CLIENTS] for path in _pull(image)])
        for node in nodes
        for n in range(_CLIENTS)
    ]
    contents.upstream.traffic_since(0)
    log_size = contents.upstream.log_size()
    requests = server.metrics().total(BUCKET_REQUESTS) if isinstance(server, Fleet) else 0.0
    cpu = _cpu_seconds(server)
    downloads = download_from(clients, parallel=3, timeout=_LONGEST)
    traffic = contents.upstream.traffic_since(log_size)
    if isinstance(server, Fleet):
        server.wait_until_uploaded()  # else uploads would slow down the next server
    figures = {
        "last s": max(one.seconds for one in downloads),
        "CPU s": _cpu_seconds(server) - cpu,
        "upstream x": traffic.bytes / sum(image.size for image in images),
        "upstream requests": float(traffic.requests),
    }
    if isinstance(server, Fleet):
        requests = server.metrics().total(BUCKET_REQUESTS) - requests
        figures["bucket requests/pull"] = requests / len(nodes) / count
    return figures


def _warm(contents: Contents, server: Server, _: int) -> Figures:
    """The tag is validated right before the pulls, so that it is fresh during them."""
    image = contents.image("bench/fleet-image")
    blob = contents.blob("bench/fleet-blob", (100 if contents.quick else 400) * MB)
    for content in (image, blob):
        contents.store(server, content)
    download(server, [_pull(image)])
    if isinstance(server, Fleet):
        server.wait_until_uploaded()
        server.wait_for_heartbeat()
    before = server.metrics() if isinstance(server, Fleet) else None
    with measured_cost(server.pid) as image_cost:
        image_rate = rate(download(server, [_pull(image) * _PULLS], parallel=3))
    with measured_cost(server.pid) as blob_cost:
        blob_rate = rate(download(server, [blob.paths * _PULLS]))
    figures = {
        "image MB/s": image_rate,
        "image CPU s/GB": image_cost.cpu / (_PULLS * image.size / 1e9),
        "blob MB/s": blob_rate,
        "blob CPU s/GB": blob_cost.cpu / (_PULLS * blob.size / 1e9),
    }
    if isinstance(server, Fleet) and before is not None:
        after = server.metrics()
        requests = after.total(BUCKET_REQUESTS) - before.total(BUCKET_REQUESTS)
        lists = after.total(BUCKET_REQUESTS, kind="list") - before.total(BUCKET_REQUESTS, kind="list")
        figures["bucket requests"] = max(requests - 2 * lists, 0.0)  # a heartbeat is a list and a write
    return figures


def _bucket_hit(contents: Contents, server: Server, number: int) -> Figures:
    """One node fetches a new blob; when it is in the bucket, another node serves it to its first client."""
    if not isinstance(server, Fleet) or len(server.nodes) < 2:
        raise BenchError("this workload needs a fleet of two nodes or more")
    blob = contents.blob(f"bench/bucket-{number}", (100 if contents.quick else 400) * MB)
    download(server.nodes[0], [blob.paths])
    server.bucket.wait_until_stored(blob)
    server.wait_until_uploaded()
    received = server.metrics().total("hubcache_tier_bytes_total", tier="bucket")
    seconds = server.bucket.read(blob)
    with measured_cost(server.nodes[1].pid) as cost:
        hit = rate(download(server.nodes[1], [blob.paths]))
    seconds += server.bucket.read(blob)
    received = server.metrics().total("hubcache_tier_bytes_total", tier="bucket") - received
    if received < blob.size:
        raise BenchError(f"only {received:.0f} of {blob.size} bytes came from the bucket")
    own = 2 * blob.size / MB / seconds
    return {"MB/s": hit, "obstore MB/s": own, "of obstore": hit / own, "CPU s/GB": cost.cpu / (blob.size / 1e9)}


def _bucket_hit_limited(contents: Contents, server: Server, number: int) -> Figures:
    """The bucket has a machine of its own, which is a limited part of this machine's CPU time."""
    if not isinstance(server, Fleet):
        raise BenchError("this workload needs a fleet of two nodes or more")
    bucket = process_tree(server.bucket.pid)
    with cpu_group(f"{server.name}-bucket", _BUCKET_CORES) as group, group.containing(bucket):
        return _bucket_hit(contents, server, number)


def _cpu_seconds(server: Server) -> float:
    """Return the CPU time of a server so far, or of all nodes of a fleet, without SeaweedFS."""
    nodes = server.nodes if isinstance(server, Fleet) else [server]
    return cpu_seconds([pid for node in nodes for pid in process_tree(node.pid)])


def _pull(image: Content) -> list[str]:
    """The paths of a pull by tag."""
    return [f"/v2/{image.name}/manifests/{image.tag}", *image.paths]


FLEET_WORKLOADS = (
    Workload(
        "fleet-new-images",
        f"{_IMAGES} new small images, on {NODES} nodes at once, {_CLIENTS} clients each; on one, all clients",
        _new_images,
        ("hubcache", "hubcache-fleet"),
        3,
    ),
    Workload(
        "fleet-new-images-limited",
        f"{_IMAGES} new small images, a machine of {MACHINE_CORES:.2g} cores for each node and its {_CLIENTS} clients",
        _new_images_limited,
        ("hubcache-limited", "hubcache-fleet-limited"),
        3,
    ),
    FLEET_KILL,
    Workload(
        "fleet-warm",
        "stored image and stored 400 MB blob, 1 client, without and with a bucket",
        _warm,
        ("hubcache", "hubcache-node"),
    ),
    Workload(
        "fleet-bucket-hit",
        "400 MB blob that is in the bucket, 1 client, beside obstore alone",
        _bucket_hit,
        ("hubcache-fleet",),
    ),
    Workload(
        "fleet-bucket-hit-limited",
        f"the same, with a machine of {_BUCKET_CORES:.2g} cores for the bucket",
        _bucket_hit_limited,
        ("hubcache-fleet",),
    ),
)
