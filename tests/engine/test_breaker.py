"""The circuit breaker: after a few failures no request waits for a host that is down, and the reason is reported."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.transfer import breaker
from hubcache.transfer.breaker import CircuitOpen
from support.engine import Cache, running
from support.ports import free_port
from support.standin import Fault, Hub, Image, random_bytes
from support.upstreams import record_requests
from support.users import EACH_LISTENER, pull, until


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch, short_times: None) -> None:
    monkeypatch.setattr(breaker, "_FIRST_PROBE_SECONDS", 0.1)
    monkeypatch.setattr(breaker, "_LAST_PROBE_SECONDS", 0.2)


@pytest.fixture
def image(hub: Hub) -> Image:
    return hub.image("library/app", "1")


@pytest.fixture
async def cache(hub: Hub, image: Image, tmp_path: Path) -> AsyncIterator[Cache]:
    """A cache with a status listener, and the image in its store."""
    async with running(hub, tmp_path / "store", status=("127.0.0.1", free_port())) as started:
        assert set(await pull(started, image)) == {200}
        hub.reset_log()
        yield started


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return record_requests(monkeypatch)


def address(hub: Hub, listener: str) -> str:
    return hub.url(listener).removeprefix("http://")


async def page(cache: Cache, path: str) -> str:
    """A page of the status listener."""
    assert cache.settings.status is not None
    url = f"http://127.0.0.1:{cache.settings.status[1]}{path}"

    def fetch() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(fetch)


async def until_closed(cache: Cache, host: str) -> None:
    await until(lambda: cache.engine.breakers.open_reason(host) is None)


async def until_open(cache: Cache, host: str) -> None:
    await until(lambda: cache.engine.breakers.open_reason(host) is not None)


async def until_probed(cache: Cache, host: str) -> None:
    """Wait until the circuit is open and its first probe has failed."""
    await until_open(cache, host)
    await cache.engine.breakers.circuits[host].probed.wait()


async def fail(cache: Cache, listener: Listener, count: int) -> None:
    """Request manifests that are not stored, a different one each time."""
    for number in range(count):
        status, _ = await cache.get(listener, f"/v2/library/none/manifests/{number}")
        assert status == 503


@EACH_LISTENER
@pytest.mark.parametrize("fault", ["stopped", "500"])
async def test_circuit_opens_after_few_failures_and_no_further_request_is_sent(
    cache: Cache, hub: Hub, listener: Listener, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "_FIRST_PROBE_SECONDS", 60.0)
    if fault == "stopped":
        hub.stop("registry")
    else:
        hub.faults.add(Fault(kind="[pmb]*", status=500, body="oops"))
    monkeypatch.setattr(breaker, "WAIT_SECONDS", 0.0)
    await fail(cache, listener, 1)
    await until_open(cache, address(hub, "registry"))
    sent_before = hub.count(listener="registry")
    await fail(cache, listener, 20)
    assert hub.count(listener="registry") == sent_before <= breaker.THRESHOLD + 1, "the failed requests, and a probe"


@EACH_LISTENER
async def test_single_failure_does_not_open_the_circuit(cache: Cache, hub: Hub, listener: Listener) -> None:
    hub.image("library/other", "1", [b"another"])
    hub.faults.add(Fault(kind="manifest", status=503, times=1))
    assert (await cache.get(listener, "/v2/library/other/manifests/1"))[0] == 200
    assert cache.engine.breakers.open_reason(address(hub, "registry")) is None


async def test_failures_with_successes_in_between_do_not_open_the_circuit(cache: Cache, hub: Hub) -> None:
    for number in range(breaker.THRESHOLD * 2):
        hub.image("library/other", str(number), [str(number).encode()])
        hub.faults.add(Fault(kind="manifest", status=503, times=1))
        assert (await cache.get(Listener.PROXY, f"/v2/library/other/manifests/{number}"))[0] == 200
    assert cache.engine.breakers.open_reason(address(hub, "registry")) is None


async def test_refusals_and_rate_limits_do_not_open_the_circuit(cache: Cache, hub: Hub) -> None:
    """Such responses show that the host works."""
    for status in (401, 403, 404, 429):
        fault = hub.faults.add(Fault(kind="manifest", status=status, body="no"))
        for number in range(breaker.THRESHOLD + 1):
            await cache.get(Listener.PROXY, f"/v2/library/s{status}/manifests/{number}")
        hub.faults.remove(fault)
    assert cache.engine.breakers.open_reason(address(hub, "registry")) is None


@EACH_LISTENER
async def test_one_time_out_opens_the_circuit_and_no_further_request_waits(
    cache: Cache, hub: Hub, image: Image, listener: Listener, sent: list[str]
) -> None:
    cache.apply(tag_ttl=0.0)
    hub.blackhole()
    await cache.get(listener, "/v2/library/app/manifests/1")
    assert address(hub, "registry") in sent
    reason = "time-out of the connection; a firewall may drop its packets, or the host is down"
    assert cache.engine.breakers.open_reason(address(hub, "registry")) == reason
    sent.clear()
    assert set(await pull(cache, image, listener)) == {200}
    await fail(cache, listener, 5)
    assert sent == []


@EACH_LISTENER
async def test_stale_copy_is_served_without_waiting_for_a_slow_upstream(
    cache: Cache, hub: Hub, image: Image, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client does not wait even for the first time-out, which in production is 30 seconds."""
    monkeypatch.setattr("hubcache.serve.cached_manifests.PATIENCE_SECONDS", 0.1)
    cache.apply(tag_ttl=0.0)
    hub.faults.add(Fault(kind="manifest", blackhole=True))
    answer, body = await cache.ask(listener, "GET", "/v2/library/app/manifests/1")
    assert isinstance(answer, Answer)
    assert (answer.result, body) == (Result.STALE, image.manifest)
    assert 'detail="upstream is slow"' in answer.headers["Cache-Status"], "after a time-out it would be the reason"


# -- one object, or the host ------------------------------------------------------------------------------------------


def put_blobs(hub: Hub, count: int) -> list[tuple[str, bytes]]:
    """Return paths of blobs that were never requested, and their content."""
    contents = [random_bytes(2000, f"cold {number}") for number in range(count)]
    return [(f"/v2/library/cold/blobs/{hub.blob('library/cold', content)}", content) for content in contents]


@EACH_LISTENER
@pytest.mark.parametrize(
    "fault", [Fault(status=500), Fault(reset=True), Fault(blackhole=True)], ids=["500", "reset", "silent"]
)
async def test_broken_blob_does_not_prevent_others_from_being_fetched(
    cache: Cache, hub: Hub, listener: Listener, fault: Fault
) -> None:
    (broken, _), *others = put_blobs(hub, 15)
    hub.faults.add(replace(fault, kind="cdn", path=f"*{broken.rpartition(':')[2]}*"))
    requests = [asyncio.create_task(cache.get(listener, broken)) for _ in range(3)]
    for path, content in others:
        assert await cache.get(listener, path) == (200, content)
    assert {status for status, _ in await asyncio.gather(*requests)} == {503}
    await until_closed(cache, address(hub, "cdn"))


@EACH_LISTENER
async def test_layers_that_fail_once_each_are_all_fetched(cache: Cache, hub: Hub, listener: Listener) -> None:
    """Together they open the circuit; the requests wait for its first probe, which closes it."""
    layers = put_blobs(hub, breaker.THRESHOLD + 1)
    for path, _ in layers:
        hub.faults.add(Fault(kind="cdn", path=f"*{path.rpartition(':')[2]}*", status=500, times=1))
    assert await asyncio.gather(*(cache.get(listener, path) for path, _ in layers)) == [
        (200, content) for _, content in layers
    ]


@EACH_LISTENER
async def test_request_for_an_unknown_manifest_waits_for_the_first_probe(
    cache: Cache, hub: Hub, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = hub.image("library/other", "1", [b"another"])
    monkeypatch.setattr(breaker, "_FIRST_PROBE_SECONDS", 0.5)
    hub.faults.add(Fault(kind="manifest", path="*/none/*", status=500))
    await asyncio.gather(*(cache.get(listener, f"/v2/library/none/manifests/{number}") for number in range(3)))
    await until_open(cache, address(hub, "registry"))
    assert await cache.get(listener, "/v2/library/other/manifests/1") == (200, other.manifest)


@EACH_LISTENER
@pytest.mark.parametrize("suffix", ["", ".sig"])
async def test_request_for_a_signature_waits_for_the_first_probe(
    cache: Cache, hub: Hub, image: Image, listener: Listener, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier that gets 404 concludes that the image is not signed."""
    signature = hub.image("library/app", image.digest.replace(":", "-") + suffix, [b"signature"])
    monkeypatch.setattr(breaker, "_FIRST_PROBE_SECONDS", 0.5)
    hub.faults.add(Fault(kind="manifest", path="*/none/*", status=500))
    await asyncio.gather(*(cache.get(listener, f"/v2/library/none/manifests/{number}") for number in range(3)))
    await until_open(cache, address(hub, "registry"))
    assert await cache.get(listener, f"/v2/library/app/manifests/{signature.tag}") == (200, signature.manifest)


async def test_request_does_not_wait_after_a_failed_probe(cache: Cache, hub: Hub) -> None:
    hub.stop("registry")
    await fail(cache, Listener.PROXY, 1)
    await until_probed(cache, address(hub, "registry"))
    with pytest.raises(CircuitOpen) as caught:
        cache.engine.breakers.raise_if_open(address(hub, "registry"))
    assert not await asyncio.wait_for(caught.value.wait_for_probe(), 0.05)


async def test_circuit_of_the_token_service_opens_after_failures_for_several_repositories(
    cache: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "_FIRST_PROBE_SECONDS", 60.0)
    monkeypatch.setattr(breaker, "WAIT_SECONDS", 0.0)
    cache.engine._clients._tokens._known.clear()
    hub.faults.add(Fault(kind="token", path="/token*", status=500))
    paths = [f"/v2/library/none{number}/manifests/1" for number in range(breaker.THRESHOLD)]
    await asyncio.gather(*(cache.get(Listener.MIRROR, path) for path in paths))
    assert cache.engine.breakers.open_reason(address(hub, "token")) == "status 500"


# -- no failures of the upstream --------------------------------------------------------------------------------------


@EACH_LISTENER
@pytest.mark.parametrize("value", ["Bearer a\r\n b", "Bearer a\nb", "Bearer a\0b", "Bearer \udcff"])
async def test_invalid_header_of_a_client_is_not_a_failure_of_the_upstream(
    cache: Cache, hub: Hub, listener: Listener, value: str
) -> None:
    others = put_blobs(hub, 2)
    for number in range(breaker.THRESHOLD + 1):
        path = f"/v2/library/app/manifests/none{number}"
        outcome, _ = await cache.ask(listener, "GET", path, authorization=value, accept=f"text/{value}")
        assert isinstance(outcome, Answer)
        assert outcome.status == 400
    for host in ("registry", "token", "cdn"):
        circuit = cache.engine.breakers.circuits.get(address(hub, host))
        assert circuit is None or (circuit.failures, circuit.is_open) == (0, False)
    assert await cache.get(listener, others[0][0], authorization=value) == (200, others[0][1])


@pytest.mark.parametrize("location", ["http://" + "a" * 70 + ".example/x", "http://\u2665..example/", "http://[::1/"])
async def test_invalid_redirect_is_a_bad_upstream_and_no_failure_of_the_host(
    cache: Cache, hub: Hub, location: str
) -> None:
    others = put_blobs(hub, 1)
    hub.faults.add(Fault(kind="blob", redirect=location, path="*/app/*"))
    for number in range(breaker.THRESHOLD + 1):
        digest = hub.blob("library/app", str(number).encode())
        assert (await cache.get(Listener.MIRROR, f"/v2/library/app/blobs/{digest}"))[0] == 502
    assert not any(circuit.failures for circuit in cache.engine.breakers.circuits.values())
    assert await cache.get(Listener.MIRROR, others[0][0]) == (200, others[0][1])


# -- many hosts -------------------------------------------------------------------------------------------------------


async def never() -> bool:
    return False


async def test_circuits_are_bounded_and_unused_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "_FIRST_PROBE_SECONDS", 0.0)
    monkeypatch.setattr(breaker, "_LAST_PROBE_SECONDS", 0.0)
    now = 0.0
    breakers = breaker.CircuitBreakers(lambda: now)
    for number in range(breaker.MAX_HOSTS * 2):
        breakers.record_failure(f"host{number}", "time-out", never, at_once=True)
    await until(lambda: len(breakers._tasks) <= breaker.MAX_HOSTS)
    assert len(breakers.circuits) == breaker.MAX_HOSTS
    last = f"host{breaker.MAX_HOSTS * 2 - 1}"
    now = breaker.UNUSED_SECONDS - 1
    assert breakers.open_reason(last) == "time-out"
    now += 2
    assert list(breakers.circuits) == [last], "it was used"
    await until(lambda: len(breakers._tasks) == 1)
    await breakers.close()


async def test_reopened_circuit_has_one_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "_FIRST_PROBE_SECONDS", 0.01)
    monkeypatch.setattr(breaker, "_LAST_PROBE_SECONDS", 0.01)
    breakers = breaker.CircuitBreakers()
    for _ in range(10):
        breakers.record_failure("host", "time-out", never, at_once=True)
        await breakers.circuits["host"].probed.wait()
        breakers.record_success("host")
    breakers.record_failure("host", "time-out", never, at_once=True)
    await until(lambda: len(breakers._tasks) == 1)
    assert breakers.open_reason("host") == "time-out"
    await breakers.close()


@EACH_LISTENER
@pytest.mark.parametrize("fault", ["stopped", "blackholed", "500"])
async def test_background_probe_closes_the_circuit(
    cache: Cache, hub: Hub, image: Image, listener: Listener, fault: str
) -> None:
    """The probe closes it although no client sends a request."""
    match fault:
        case "stopped":
            hub.stop("registry")
        case "blackholed":
            hub.blackhole("registry")
        case status:
            hub.faults.add(Fault(kind="[pmb]*", status=int(status)))
    await fail(cache, listener, 1)
    await asyncio.sleep(0.3)
    assert cache.engine.breakers.open_reason(address(hub, "registry")) is not None, "probes fail, too"
    hub.faults.clear()
    hub.start()
    await until_closed(cache, address(hub, "registry"))
    moved = hub.image("library/app", "1", [b"moved"])
    cache.apply(tag_ttl=0.0)
    assert await cache.get(listener, "/v2/library/app/manifests/1") == (200, moved.manifest)


async def test_probes_are_few_and_have_no_credentials(cache: Cache, hub: Hub) -> None:
    hub.faults.add(Fault(kind="[pmb]*", status=500))
    await fail(cache, Listener.PROXY, 1)
    hub.reset_log()
    await asyncio.sleep(0.5)
    probes = hub.requests()
    assert 1 <= len(probes) <= 4
    assert {(probe.method, probe.path, probe.authorization) for probe in probes} == {("GET", "/v2/", None)}


async def test_each_host_has_its_own_circuit(cache: Cache, hub: Hub) -> None:
    """A dead CDN does not keep manifests from being validated."""
    other = hub.image("library/other", "1", [b"another"])
    hub.stop("cdn")
    for blob in (*other.layers, other.config):
        assert (await cache.get(Listener.PROXY, f"/v2/library/other/blobs/{blob}"))[0] == 503
    assert cache.engine.breakers.open_reason(address(hub, "cdn")) is not None
    assert await cache.get(Listener.PROXY, "/v2/library/other/manifests/1") == (200, other.manifest)


async def test_state_and_reason_are_reported(cache: Cache, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """They are in `/healthz`, in the metrics and in the log, also when the host works again."""
    host = address(hub, "registry")
    assert json.loads(await page(cache, "/healthz"))["status"] == "ok"
    assert f'hubcache_upstream_up{{host="{host}"}} 1.0' in await page(cache, "/metrics")
    with caplog.at_level("INFO", "hubcache"):
        hub.stop("registry")
        await fail(cache, Listener.PROXY, 3)
        health = json.loads(await page(cache, "/healthz"))
        assert health["status"] == "degraded"
        refused = "connection refused; nothing listens on this port, or a firewall refuses connections"
        assert health["upstreams_down"] == {host: refused}
        metrics = await page(cache, "/metrics")
        assert f'hubcache_upstream_up{{host="{host}"}} 0.0' in metrics
        assert f'hubcache_upstream_requests_total{{host="{host}",kind="manifest",status="error"}} 3.0' in metrics
        opened = [record.getMessage() for record in caplog.records if host in record.getMessage()]
        assert len(opened) == 1, "logged once, not for each request"
        assert refused in opened[0]
        hub.start()
        await until_closed(cache, host)
    assert f"{host} answers again" in caplog.text
    assert json.loads(await page(cache, "/healthz"))["status"] == "ok"
    assert f'hubcache_upstream_up{{host="{host}"}} 1.0' in await page(cache, "/metrics")


@EACH_LISTENER
async def test_stale_answer_names_the_reason_of_the_open_circuit(
    cache: Cache, hub: Hub, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    cache.apply(tag_ttl=0.0)
    hub.faults.add(Fault(kind="[pmb]*", status=502))
    await cache.ask(listener, "GET", "/v2/library/app/manifests/1")
    await until_open(cache, address(hub, "registry"))
    answer, _ = await cache.ask(listener, "GET", "/v2/library/app/manifests/1")
    assert isinstance(answer, Answer)
    assert answer.result is Result.STALE
    assert f'detail="{address(hub, "registry")} is down: status 502"' in answer.headers["Cache-Status"]
    assert "status 502" in caplog.text
