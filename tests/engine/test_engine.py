"""The engine from start to shutdown: its store, periodic work and changes of options."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from hubcache import housekeeping
from hubcache.engine import Engine
from hubcache.oci.digest import Digest
from hubcache.oci.errors import ConfigError, StoreTooNew
from hubcache.operate.running_request import RunningRequest
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.store.index import Index
from hubcache.transfer.body_progress import BodyProgress
from hubcache.transfer.file_part import FilePart
from support.bodies import Pieces
from support.engine import SETUP, Cache, running, settings
from support.ports import free_port
from support.standin import Fault, Hub, random_bytes
from support.users import pull, until

REPO = "library/app"


@pytest.fixture
def quick_housekeeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(housekeeping, "_REOPEN_SECONDS", 0.05)


async def test_unusable_store_is_opened_once_it_can_be_used(quick_housekeeping: None, hub: Hub, tmp_path: Path) -> None:
    directory = tmp_path / "store"
    directory.touch()
    image = hub.image(REPO, "1")
    async with running(hub, directory) as cache:
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 200
        assert not cache.engine.store.is_open
        directory.unlink()
        await until(lambda: cache.engine.store.is_open)
        for _ in range(2):
            assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{image.digest}"))[0] == 200
        hub.reset_log()
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/{image.digest}"))[0] == 200
        assert hub.count() == 0
        assert cache.engine.store.problem is None


async def test_storage_error_is_logged_once(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "store").touch()
    hub.image(REPO, "1")
    async with running(hub, tmp_path / "store") as cache:
        for _ in range(5):
            await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1")
    logged = [record for record in caplog.records if "not storing, pulls continue uncached" in record.getMessage()]
    assert len(logged) == 1


async def test_store_of_a_newer_version_is_refused(hub: Hub, tmp_path: Path) -> None:
    index = Index(tmp_path / "store" / "store")
    index.set("format", "99")
    index.close()
    with pytest.raises(StoreTooNew, match="format 99"):
        async with running(hub, tmp_path / "store"):
            pass


async def test_status_address_that_is_taken_is_refused(hub: Hub, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = settings(hub, tmp_path / "store", status=("127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(ConfigError, match="hubcache_status"):
            await Engine.start(chosen, ssl.create_default_context(), SETUP)


async def test_status_pages_are_served_while_it_runs(hub: Hub, tmp_path: Path) -> None:
    port = free_port()
    async with (
        running(hub, tmp_path / "store", status=("127.0.0.1", port)),
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{port}/healthz") as answer,
    ):
        assert json.loads(await answer.text())["status"] == "ok"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_request_counts_survive_a_restart(hub: Hub, tmp_path: Path) -> None:
    """Popularity is written with a delay, and at the latest at shutdown."""
    image = hub.image(REPO, "1")
    async with running(hub, tmp_path / "store") as cache:
        for _ in range(3):
            await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1")
        before = cache.engine.store.capacity.retention.requests(Digest.parse(image.digest), time.time())
    assert before >= 1
    async with running(hub, tmp_path / "store") as cache:
        after = cache.engine.store.capacity.retention.requests(Digest.parse(image.digest), time.time())
    assert after == pytest.approx(before, abs=0.01)


async def test_changed_options_take_effect_at_once(hub: Hub, tmp_path: Path) -> None:
    hub.image(REPO, "1")
    async with running(hub, tmp_path / "store") as cache:
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 200
        cache.apply(size=1 << 22, offline=True, half_life=100.0, expire_after=200.0, admit_after=3)
        capacity = cache.engine.store.capacity
        assert (capacity.max_bytes, capacity.retention.half_life) == (1 << 22, 100.0)
        assert (capacity.retention.expire_after, capacity.retention.admit_after) == (200.0, 3)
        hub.reset_log()
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/1"))[0] == 200
        assert (await cache.get(Listener.PROXY, f"/v2/{REPO}/manifests/none"))[0] == 503
        assert hub.count() == 0


async def test_pull_of_stored_image_waits_for_no_write(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Request counts are written with a delay."""
    async with running(hub, tmp_path / "store") as cache:
        image = hub.image(REPO, "1", [random_bytes(100_000)])
        assert set(await pull(cache, image)) == {200}
        written: list[object] = []
        write = cache.engine.store.index.write

        async def noted(action: Callable[[], object]) -> object:
            written.append(action)
            return await write(action)

        monkeypatch.setattr(cache.engine.store.index, "write", noted)
        for listener in Listener:
            assert set(await pull(cache, image, listener)) == {200}
        assert not written
        assert cache.engine.store.capacity.retention.take_changed()


@pytest.mark.parametrize("listener", list(Listener), ids=lambda listener: listener.value)
async def test_pull_of_an_index_counts_once_for_it_and_once_for_the_platforms_manifest(
    hub: Hub, tmp_path: Path, listener: Listener
) -> None:
    """By tag or digest, HEAD included."""
    amd64 = hub.image(REPO, None, [b"amd64"], platform="linux/amd64")
    index = hub.index(REPO, "1", {"linux/amd64": amd64})
    async with running(hub, tmp_path / "store") as cache:
        for method, reference in (("HEAD", "1"), ("GET", index.digest), ("HEAD", amd64.digest), ("GET", amd64.digest)):
            answer, _ = await cache.ask(listener, method, f"/v2/{REPO}/manifests/{reference}")
            assert isinstance(answer, Answer)
            assert answer.status == 200
        retention = cache.engine.store.capacity.retention
        for digest in (index.digest, amd64.digest):
            assert retention.requests(Digest.parse(digest), time.time()) == pytest.approx(1, abs=0.01)


async def test_shutdown_during_a_fill_leaves_no_file_and_does_not_wait(hub: Hub, tmp_path: Path) -> None:
    digest = hub.blob(REPO, random_bytes(500_000))
    hub.faults.add(Fault(kind="cdn", pause_after=100_000))
    async with asyncio.timeout(5):
        async with running(hub, tmp_path / "store") as cache:
            answer = await _begin(cache, digest)
            assert list((tmp_path / "store" / "staging").iterdir())
        assert list((tmp_path / "store" / "staging").iterdir()) == []
    assert answer.source is not None
    await answer.source.close()


async def _begin(cache: Cache, digest: str) -> Answer:
    outcome = await cache.engine.service.answer(cache.request(Listener.PROXY, "GET", f"/v2/{REPO}/blobs/{digest}"))
    assert isinstance(outcome, Answer)
    return outcome


async def test_directory_can_be_used_again_after_shutdown(hub: Hub, tmp_path: Path) -> None:
    for _ in range(2):
        async with running(hub, tmp_path / "store") as cache:
            assert cache.engine.store.is_open


class Writer:
    """A client that takes everything."""

    chunk_size = 1000

    def write(self, data: bytes) -> None:
        pass

    def write_from(self, part: FilePart, most: int, taken: Callable[[int], None]) -> None:
        raise NotImplementedError

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


async def test_download_that_the_stop_cuts_off_is_a_failed_pull(hub: Hub, tmp_path: Path) -> None:
    progress, digest = BodyProgress(), Digest.of(b"layer")
    async with running(hub, tmp_path) as cache:
        request = cache.request(Listener.MIRROR, "GET", f"/v2/{REPO}/blobs/{digest}")
        record = RunningRequest(request, cache.engine.request_ended)

        async def send() -> None:
            source = Pieces(b"first", asyncio.Event(), b"never")
            try:
                await cache.engine.body_delivery.send(b"", source, Writer(), progress)
            finally:
                answer = Answer(200, {}, Result.HIT, length=10, kind="blob")
                record.answered(answer, sent=progress.sent, is_complete=False)

        sending = asyncio.create_task(send())
        await until(lambda: progress.sent == 5)
    assert sending.cancelled()
    (ended,) = cache.engine.pulls.recent
    assert (ended.result, ended.requests, ended.sent) == ("failed", 1, 5)
