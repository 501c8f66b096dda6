"""The circuit breaker: requests that fail for one object only, and probes of a host that is down."""

import asyncio
from dataclasses import replace

import pytest
from hubcache.serve.messages import Listener
from hubcache.transfer import breaker
from hubcache.transfer.breaker import CircuitOpen
from support.breakers import address, breaker_fixtures, fail, never, put_blobs, until_closed, until_open, until_probed
from support.engine import Cache
from support.standin import Fault, Hub, Image
from support.users import EACH_LISTENER, until

_short_times, image, cache, sent = breaker_fixtures()


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
