"""Faults of the stand-in Hub: statuses, broken and modified bodies, delays and pauses."""

import asyncio
import threading
import time
from dataclasses import replace

import aiohttp
import pytest
from support.http_client import wait_until
from support.standin import Fault, Hub, Image, random_bytes
from support.standin.content import sha256
from support.standin_client import app_fixture, bearer, fetch, pull

app = app_fixture()


def test_status_fault_ends_after_its_times(hub: Hub, app: Image) -> None:
    hub.faults.add(Fault(kind="manifest", times=2, status=503, body="<html>", headers={"Retry-After": "7"}))
    answers = [pull(hub, "manifests/latest") for _ in range(3)]
    assert [answer.status for answer in answers] == [503, 503, 200]
    assert answers[0].headers["retry-after"] == "7"
    assert answers[0].headers["content-type"].startswith("text/html")


def test_unauthorized_fault_has_the_challenge(hub: Hub, app: Image) -> None:
    hub.faults.add(Fault(kind="manifest", status=401))
    answer = pull(hub, "manifests/latest")
    assert answer.status == 401
    assert 'scope="repository:library/app:pull"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="cdn", close_after=100_000),
        Fault(kind="cdn", length=300_001),
        Fault(kind="cdn", chunked=True, close_after=100_000),
        Fault(kind="cdn", reset=True),
    ],
    ids=["cut", "length", "chunked-cut", "reset"],
)
def test_broken_bodies_are_client_errors(hub: Hub, app: Image, fault: Fault) -> None:
    hub.faults.add(fault)
    with pytest.raises(aiohttp.ClientError):
        fetch(hub.cdn.sign(f"/blobs/library/app/{app.layers[0]}"))
    assert fault.hits >= 1


def test_modified_bodies_arrive_modified(hub: Hub, app: Image) -> None:
    url, data = hub.cdn.sign(f"/blobs/library/app/{app.layers[0]}"), random_bytes(300_000, 1)
    hub.faults.add(Fault(kind="cdn", times=1, corrupt_at=299_999))
    assert fetch(url).body == data[:-1] + bytes([data[-1] ^ 0xFF])
    hub.faults.add(Fault(kind="cdn", times=1, chunked=True, extra=10))
    answer = fetch(url)
    assert ("content-length" in answer.headers, answer.body) == (False, data + bytes(10))
    hub.faults.add(Fault(kind="cdn", times=1, length=1000))
    assert fetch(url).body == data[:1000]


def test_surplus_bytes_follow_the_declared_length(hub: Hub) -> None:
    hub.blob("library/app", b"short")
    hub.faults.add(Fault(kind="cdn", extra=3))
    url = hub.cdn.sign(f"/blobs/library/app/{sha256(b'short')}").removeprefix(hub.url("cdn"))

    async def raw() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.ports["cdn"])
        writer.write(f"GET {url} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = await reader.read(-1)
        writer.close()
        return data

    assert asyncio.run(raw()).endswith(b"\r\n\r\nshort\0\0\0")


def test_headers_can_be_removed(hub: Hub, app: Image) -> None:
    hub.faults.add(Fault(kind="manifest", drop=("docker-content-digest", "Content-Length")))
    answer = pull(hub, "manifests/latest", "HEAD")
    assert answer.status == 200
    assert not {"docker-content-digest", "content-length"} & set(answer.headers)


def test_redirect_faults_loop_or_have_a_target(hub: Hub, app: Image) -> None:
    hub.faults.add(Fault(kind="blob", redirect="loop"))
    token = bearer(hub, "repository:library/app:pull")
    with pytest.raises(aiohttp.TooManyRedirects):
        fetch(f"{hub.url()}/v2/library/app/blobs/{app.config}", headers=token, follow=True)
    hub.faults.clear()
    hub.faults.add(Fault(kind="blob", redirect="http://127.0.0.1:1/gone"))
    assert pull(hub, f"blobs/{app.config}").headers["location"] == "http://127.0.0.1:1/gone"


def test_stopped_listener_refuses_and_starts_on_the_same_port(hub: Hub) -> None:
    url = f"{hub.url()}/v2/"
    hub.stop("registry")
    with pytest.raises(aiohttp.ClientConnectorError):
        fetch(url)
    hub.start("registry")
    assert fetch(url).status == 401


def test_black_holes_never_answer(hub: Hub) -> None:
    async def times_out() -> bool:
        limits = aiohttp.ClientTimeout(total=0.5)
        try:
            async with aiohttp.ClientSession(timeout=limits) as session, session.get(f"{hub.url()}/v2/"):
                return False
        except TimeoutError:
            return True

    fault = hub.faults.add(Fault(kind="ping", blackhole=True))
    assert asyncio.run(times_out())
    hub.faults.remove(fault)
    hub.blackhole("registry")
    assert asyncio.run(times_out())
    hub.start("registry")
    assert fetch(f"{hub.url()}/v2/").status == 401


def test_rate_and_delay_slow_a_response_down(hub: Hub, app: Image) -> None:
    url = hub.cdn.sign(f"/blobs/library/app/{app.layers[0]}")
    hub.faults.add(Fault(kind="cdn", rate=1_000_000, delay=0.1))
    begun = time.monotonic()
    assert len(fetch(url).body) == 300_000
    assert time.monotonic() - begun > 0.35


def test_paused_body_continues_when_released(hub: Hub, app: Image) -> None:
    fault = hub.faults.add(Fault(kind="cdn", pause_after=100_000))
    bodies: list[bytes] = []
    url = hub.cdn.sign(f"/blobs/library/app/{app.layers[0]}")
    reader = threading.Thread(target=lambda: bodies.append(fetch(url).body))
    reader.start()
    wait_until(lambda: hub.sent(kind="cdn") == 100_000)
    time.sleep(0.1)
    assert hub.sent(kind="cdn") == 100_000
    fault.release.set()
    reader.join(5)
    assert bodies == [random_bytes(300_000, 1)]


def test_copy_of_a_fault_that_was_removed_pauses_again(hub: Hub, app: Image) -> None:
    """A test that is parametrised with a fault adds a copy of it each time."""
    original = Fault(kind="cdn", pause_after=100_000)
    hub.faults.remove(hub.faults.add(replace(original)))
    assert not hub.faults.add(replace(original)).release.is_set()
