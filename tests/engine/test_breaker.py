"""The circuit breaker: after a few failures no request waits for a host that is down, and the reason is reported."""

import asyncio
import json
import urllib.request

import pytest
from hubcache.serve.messages import Answer, Listener, Result
from hubcache.transfer import breaker
from support.breakers import address, breaker_fixtures, fail, never, put_blobs, until_closed, until_open
from support.engine import Cache
from support.standin import Fault, Hub, Image
from support.users import EACH_LISTENER, pull, until

_short_times, image, cache, sent = breaker_fixtures()


async def page(cache: Cache, path: str) -> str:
    """A page of the status listener."""
    assert cache.settings.status is not None
    url = f"http://127.0.0.1:{cache.settings.status[1]}{path}"

    def fetch() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(fetch)


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
