"""Clients that leave, dawdle or say nothing: nobody is waited for longer than mitmproxy would, and nothing is left."""

import contextlib
import io
import socket
import time

import pytest
from support import program
from support.http_client import PATIENCE, wait_until
from support.program import HUB_HOST, Door
from support.standin import Fault, Synthetic, random_bytes
from support.tls_client import Client, Witness, ask, is_open, proxy_door_fixture, reply, warm, witness_fixture

MIB = 1 << 20
SECONDS = 1
"""How long a client may be silent. mitmproxy's own default is 600."""

rig, door = program.fixtures(warm, hubcache_workers="1", hubcache_tag_ttl="600", tcp_timeout=str(SECONDS))
proxy_door = proxy_door_fixture()
witness = witness_fixture()


def until_left(client: socket.socket) -> float:
    """Seconds until the proxy leaves."""
    begun = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    return time.monotonic() - begun


# -- leaving


def test_client_that_leaves_during_a_body_does_not_end_the_fill(door: Door, witness: Witness) -> None:
    data = random_bytes(MIB, door.repo)
    digest = door.hub.blob(door.repo, data)
    fault = door.hub.faults.add(Fault(kind="cdn", pause_after=MIB // 2))
    leaver = door.send("GET", f"/v2/{door.repo}/blobs/{digest}")
    leaver.read(1000)
    leaver.close()
    door.hub.faults.remove(fault)
    door.settle()
    assert door.blob(digest).body == data
    assert (door.hub.count(kind="cdn"), witness.taken_over) == (1, 0)


def test_client_that_leaves_while_its_answer_is_thought_about_leaves_nothing(door: Door, witness: Witness) -> None:
    data = random_bytes(MIB, door.repo)
    digest = door.hub.blob(door.repo, data)
    fault = door.hub.faults.add(Fault(kind="blob", delay=0.5))
    with Client(door) as leaver:
        leaver.send(ask(door, f"blobs/{digest}"))
        wait_until(lambda: door.hub.count(kind="blob") == 1)
    door.hub.faults.remove(fault)
    wait_until(lambda: any(line.endswith("broken off") for line in witness.lines))
    door.settle()
    wait_until(lambda: not is_open(door.product, digest))
    assert door.blob(digest).body == data


def test_file_is_released_when_its_client_leaves(door: Door, witness: Witness) -> None:
    """A file that is removed takes no room only when nobody has it open."""
    large = Synthetic(24 * MIB, seed=door.repo)
    digest = door.hub.blob(door.repo, large)
    door.blob(digest)
    door.settle()
    reader = door.send("GET", f"/v2/{door.repo}/blobs/{digest}")
    assert reader.read(MIB) == large.read(0, MIB)
    assert is_open(door.product, digest)
    reader.close()
    wait_until(lambda: not is_open(door.product, digest))
    assert witness.taken_over == 0


# -- silence


def test_client_that_says_nothing_is_left(door: Door, witness: Witness) -> None:
    port = door.product.proxy if door.is_proxy else door.product.mirror
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        assert SECONDS / 2 < until_left(client) < 5 * SECONDS
    assert witness.taken_over == 0


@pytest.mark.parametrize("said", ["nothing", "half a hello", "a hello"])
def test_client_that_says_nothing_more_in_a_tunnel_is_left(proxy_door: Door, witness: Witness, said: str) -> None:
    with proxy_door.product.tunnel(HUB_HOST, 443) as tunnel:
        client = Client(proxy_door, way=tunnel)
        hello = client.hello()
        tunnel.sendall({"nothing": b"", "half a hello": hello[:100], "a hello": hello}[said])
        assert SECONDS / 2 < until_left(tunnel) < 5 * SECONDS
    assert witness.taken_over == 0
    assert ("may not trust the proxy's certificate" in witness.log) is (said == "a hello")


def test_connection_on_which_nothing_more_is_asked_is_left(door: Door, witness: Witness) -> None:
    image = door.hub.image(door.repo, "1", [random_bytes(MIB, door.repo)])
    for path in ("manifests/1", f"blobs/{image.layers[0]}"):
        with Client(door) as client:
            client.send(ask(door, path))
            begun = time.monotonic()
            assert reply(io.BytesIO(client.rest()))[0] == 200
            assert SECONDS / 2 < time.monotonic() - begun < 5 * SECONDS
    assert witness.taken_over == 0


def test_client_that_asks_again_and_again_is_kept(door: Door) -> None:
    image = door.hub.image(door.repo, "1")
    begun = time.monotonic()
    with door.connect() as kept:
        while time.monotonic() - begun < 2.5 * SECONDS:
            kept.sendall(ask(door, "manifests/1"))
            assert reply(kept.makefile("rb")) == (200, image.manifest)
            time.sleep(SECONDS / 4)


def test_client_may_wait_longer_for_its_answer(door: Door, witness: Witness) -> None:
    image = door.hub.image(door.repo, "1", [random_bytes(MIB, door.repo)])
    door.hub.faults.add(Fault(kind="manifest", delay=2 * SECONDS, times=1))
    door.hub.faults.add(Fault(kind="cdn", rate=MIB // 3, times=1))
    with door.connect() as kept:
        for path, body in (("manifests/1", image.manifest), (f"blobs/{image.layers[0]}", random_bytes(MIB, door.repo))):
            kept.sendall(ask(door, path))
            assert reply(kept.makefile("rb")) == (200, body)
    assert witness.taken_over == 0


def test_client_that_stops_reading_is_left_and_its_file_released(door: Door, witness: Witness) -> None:
    large = Synthetic(24 * MIB, seed=door.repo)
    digest = door.hub.blob(door.repo, large)
    door.blob(digest)
    door.settle()
    dawdler = door.send("GET", f"/v2/{door.repo}/blobs/{digest}")
    assert is_open(door.product, digest)
    wait_until(lambda: not is_open(door.product, digest), 5 * SECONDS)
    answer = dawdler.finish()
    assert not answer.complete
    assert len(answer.body) < large.size
    dawdler.close()
    wait_until(lambda: any(line.endswith("broken off") for line in witness.lines))
    assert witness.taken_over == 0
