"""Images that are made to consume resources: indexes of indexes, and manifests with thousands of layers."""

import asyncio
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hubcache.decide.records import Link, ManifestRecord
from hubcache.oci.digest import Digest
from hubcache.oci.errors import BadUpstream, ManifestInvalid
from hubcache.oci.manifest import MAX_DESCRIPTORS, parse_manifest
from hubcache.oci.media import OCI_INDEX, OCI_MANIFEST
from hubcache.serve import prefetch
from hubcache.serve.messages import Listener
from hubcache.serve.repository_view import RepositoryView
from hubcache.store.store import Store
from hubcache.store.usage import MAX_CLOSURE, Usage
from support.engine import Cache
from support.standin import Hub
from support.stores import manifest_of, opened_store

REPO, PLATFORM = "library/app", "linux/amd64/"
AMD64 = {"os": "linux", "architecture": "amd64"}


def index_of(*children: str, note: str = "") -> bytes:
    entries = [{"digest": child, "size": 10, "platform": AMD64} for child in children]
    return json.dumps({"manifests": entries, "note": note}).encode()


async def tree(store: Store, depth: int, width: int) -> tuple[Digest, int]:
    """Return the root of a tree of indexes, each of `width` children, down to an image, and the number of manifests."""
    digest = Digest.of(manifest_of())
    await store.put_manifest(digest, ManifestRecord(OCI_MANIFEST, manifest_of()))
    for level in range(depth):
        body = index_of(*[digest] * width, note=str(level))
        digest = Digest.of(body)
        await store.put_manifest(digest, ManifestRecord(OCI_INDEX, body))
    return digest, depth + 1


def count_manifest_reads(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Counter[Digest]:
    """Count how often each manifest is read."""
    counts, children_of = Counter[Digest](), cache.engine._mirror._prefetch.children

    def counted(digest: Digest) -> object:
        counts[digest] += 1
        return children_of(digest)

    monkeypatch.setattr(cache.engine._mirror._prefetch, "children", counted)
    return counts


async def turns_during(work: asyncio.Task[object]) -> int:
    """Return how often other tasks ran until this one was done."""
    turns = 0
    while not work.done():
        turns += 1
        await asyncio.sleep(0)
    return turns


@pytest.mark.parametrize(("depth", "is_image"), [(1, True), (2, True), (prefetch.MAX_DEPTH, True), (8, False)])
async def test_each_manifest_of_a_tree_is_read_once_and_depth_is_bounded(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, depth: int, is_image: bool
) -> None:
    root, count = await tree(cache.engine.store, depth, 9)
    counts = count_manifest_reads(cache, monkeypatch)
    work = asyncio.create_task(cache.engine._mirror._prefetch.is_complete(root, {PLATFORM}))
    turns = await turns_during(work)
    assert work.result() is is_image
    assert set(counts.values()) == {1}
    assert len(counts) == min(count, prefetch.MAX_DEPTH + 1)
    assert turns >= len(counts), "other tasks run between any two"


async def test_walk_of_a_wide_tree_is_bounded(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    store = cache.engine.store
    leaves = []
    for number in range(prefetch.MAX_MANIFESTS + 10):
        body = manifest_of(note=str(number))
        leaves.append(Digest.of(body))
        await store.put_manifest(leaves[-1], ManifestRecord(OCI_MANIFEST, body))
    root = Digest.of(index_of(*leaves))
    await store.put_manifest(root, ManifestRecord(OCI_INDEX, index_of(*leaves)))
    counts = count_manifest_reads(cache, monkeypatch)
    assert not await cache.engine._mirror._prefetch.is_complete(root, {PLATFORM})
    assert len(counts) <= prefetch.MAX_MANIFESTS


async def test_completeness_is_checked_once_until_the_store_changes(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cache.engine.store
    root, count = await tree(store, 2, 9)
    counts = count_manifest_reads(cache, monkeypatch)
    for _ in range(5):
        assert await cache.engine._mirror._prefetch.is_complete(root, {PLATFORM})
    assert counts.total() == count
    await store.remove(Digest.of(manifest_of()))
    assert not await cache.engine._mirror._prefetch.is_complete(root, {PLATFORM})


@pytest.mark.parametrize("depth", [3, 8])
async def test_fetch_of_a_tree_requests_each_manifest_once_and_ends(cache: Cache, hub: Hub, depth: int) -> None:
    digest = hub.manifest(REPO, None, manifest_of(), OCI_MANIFEST)
    for level in range(depth):
        digest = hub.manifest(REPO, None, index_of(*[digest] * 9, note=str(level)), OCI_INDEX)
    hub.manifest(REPO, "1", hub.memory.repository(REPO).manifests[digest].body, OCI_INDEX)
    assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 200
    hub.reset_log()
    view = RepositoryView(cache.engine.service._upstreams["registry-1.docker.io"], REPO)
    work = cache.engine._mirror._prefetch.fetch(view, Digest.parse(digest), {PLATFORM})
    if depth > prefetch.MAX_DEPTH:
        with pytest.raises(BadUpstream):
            await work
    else:
        await work
    assert hub.count(kind="manifest", method="GET") == min(depth, prefetch.MAX_DEPTH)


def test_closure_visits_each_digest_once_and_is_bounded() -> None:
    class Counted(dict[Digest, tuple[Digest, ...]]):
        counts = 0

        def get(self, key: Digest, default: object = None) -> object:  # type: ignore[override]
            Counted.counts += 1
            return super().get(key, default)  # type: ignore[arg-type]

    usage, levels = Usage(), [Digest.of(str(level).encode()) for level in range(9)]
    usage.children = Counted({above: (below,) * 9 for above, below in itertools.pairwise(levels)})
    assert usage.closure([levels[0]]) == set(levels)
    assert Counted.counts == len(levels)
    many = tuple(Digest.of(str(number).encode()) for number in range(MAX_CLOSURE + 100))
    usage.children = {levels[0]: many}
    assert len(usage.closure([levels[0]])) == MAX_CLOSURE


# -- manifests of thousands of layers --------------------------------------------------------------------------------


def layers(count: int) -> list[tuple[Digest, int]]:
    return [(Digest.of(str(number).encode()), number) for number in range(count)]


@pytest.mark.parametrize("key", ["layers", "manifests", "blobs"])
def test_number_of_descriptors_in_a_manifest_is_bounded(key: str) -> None:
    entry = {"digest": Digest.of(b""), "size": 0}
    assert len(parse_manifest(json.dumps({key: [entry] * MAX_DESCRIPTORS}).encode())) == MAX_DESCRIPTORS
    with pytest.raises(ManifestInvalid):
        parse_manifest(json.dumps({key: [entry] * (MAX_DESCRIPTORS + 1)}).encode())


def test_descriptors_of_all_fields_are_counted_before_they_are_parsed() -> None:
    entries: list[object] = [None] * (MAX_DESCRIPTORS // 2 + 1)
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(json.dumps({"layers": entries, "manifests": entries}).encode())
    assert caught.value.detail == {"descriptors": MAX_DESCRIPTORS + 2, "limit": MAX_DESCRIPTORS}


@pytest.mark.parametrize("body", [b"{}," * 40_000, b"1," * 100_000], ids=["objects", "numbers"])
def test_manifest_with_too_many_values_is_refused_without_parsing(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(ManifestInvalid, match="too many descriptors"):
        parse_manifest(b'{"layers": [' + body + b"1]}")


async def test_manifest_with_too_many_layers_is_an_invalid_upstream_answer(cache: Cache, hub: Hub) -> None:
    hub.manifest(REPO, "1", manifest_of(*layers(MAX_DESCRIPTORS + 1)), OCI_MANIFEST)
    assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 502
    assert not cache.engine.store.usage.sizes


async def test_links_of_a_large_manifest_are_not_read_on_the_event_loop(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.manifest(REPO, "1", manifest_of(*layers(MAX_DESCRIPTORS)), OCI_MANIFEST)
    store = cache.engine.store
    reads, read = list[str](), store.index.read

    def counted(key: str) -> object:
        reads.append(key)
        return read(key)

    monkeypatch.setattr(store.index, "read", counted)
    assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 200
    assert len([key for key in reads if key.startswith("link/")]) < 10
    for digest, size in (layers(MAX_DESCRIPTORS)[0], layers(MAX_DESCRIPTORS)[-1]):
        assert store.links.get("registry-1.docker.io", REPO, digest) == Link(size, confirmed=False)


async def test_writing_many_links_does_not_overwrite_better_ones(tmp_path: Path) -> None:
    async with opened_store(tmp_path) as store:
        location, sizes = ("registry-1.docker.io", REPO), dict(layers(100))
        (first, _), (second, _), *_ = sizes.items()
        await store.links.put(*location, {first: 77})
        await store.links.put(*location, {second: 78}, confirmed=False)
        await store.links.put(*location, sizes, confirmed=False)
        assert store.links.get(*location, first) == Link(77, confirmed=True)
        assert store.links.get(*location, second) == Link(78, confirmed=False)
        await store.links.put(*location, dict.fromkeys(sizes))
        assert store.links.get(*location, first) == Link(77, confirmed=True)
        assert store.links.get(*location, second) == Link(78, confirmed=True)
        assert store.links.get(*location, layers(100)[-1][0]) == Link(99, confirmed=True)
