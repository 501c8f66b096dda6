"""Clients that leave, dawdle or say nothing: nobody is waited for longer than mitmproxy would, and nothing is left."""

import contextlib
import io
import socket
import time

import pytest
from support.http_client import TIMEOUT, wait_until
from support.program import HUB_HOST, RegistryClient, program_fixtures, proxy_client_fixture
from support.standin import Fault, Synthetic, random_bytes
from support.tls_client import Client, Witness, ask, is_open, reply, warm, witness_fixture

MIB = 1 << 20
SECONDS = 1
"""How long a client may be silent. mitmproxy's own default is 600."""

program, client = program_fixtures(warm, hubcache_workers="1", hubcache_tag_ttl="600", tcp_timeout=str(SECONDS))
proxy_client = proxy_client_fixture()
witness = witness_fixture()


def until_left(connection: socket.socket) -> float:
    """Seconds until the proxy leaves."""
    begun = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass
    return time.monotonic() - begun


# -- leaving


def test_client_that_leaves_during_a_body_does_not_end_the_fill(client: RegistryClient, witness: Witness) -> None:
    data = random_bytes(MIB, client.repo)
    digest = client.hub.blob(client.repo, data)
    fault = client.hub.faults.add(Fault(kind="cdn", pause_after=MIB // 2))
    leaver = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    leaver.read(1000)
    leaver.close()
    client.hub.faults.remove(fault)
    client.wait_until_stored()
    assert client.blob(digest).body == data
    assert (client.hub.count(kind="cdn"), witness.taken_over) == (1, 0)


def test_client_that_leaves_while_its_answer_is_thought_about_leaves_nothing(
    client: RegistryClient, witness: Witness
) -> None:
    data = random_bytes(MIB, client.repo)
    digest = client.hub.blob(client.repo, data)
    fault = client.hub.faults.add(Fault(kind="blob", delay=0.5))
    with Client(client) as leaver:
        leaver.send(ask(client, f"blobs/{digest}"))
        wait_until(lambda: client.hub.count(kind="blob") == 1)
    client.hub.faults.remove(fault)
    wait_until(lambda: any(line.endswith("broken off") for line in witness.lines))
    client.wait_until_stored()
    wait_until(lambda: not is_open(client.program, digest))
    assert client.blob(digest).body == data


def test_file_is_released_when_its_client_leaves(client: RegistryClient, witness: Witness) -> None:
    """A file that is removed takes no room only when nobody has it open."""
    large = Synthetic(24 * MIB, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    client.blob(digest)
    client.wait_until_stored()
    reader = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    assert reader.read(MIB) == large.read(0, MIB)
    assert is_open(client.program, digest)
    reader.close()
    wait_until(lambda: not is_open(client.program, digest))
    assert witness.taken_over == 0


# -- silence


def test_client_that_says_nothing_is_left(client: RegistryClient, witness: Witness) -> None:
    port = client.program.proxy if client.is_proxy else client.program.mirror
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        assert SECONDS / 2 < until_left(connection) < 5 * SECONDS
    assert witness.taken_over == 0


@pytest.mark.parametrize("said", ["nothing", "half a hello", "a hello"])
def test_client_that_says_nothing_more_in_a_tunnel_is_left(
    proxy_client: RegistryClient, witness: Witness, said: str
) -> None:
    with proxy_client.program.tunnel(HUB_HOST, 443) as tunnel:
        connection = Client(proxy_client, way=tunnel)
        hello = connection.hello()
        tunnel.sendall({"nothing": b"", "half a hello": hello[:100], "a hello": hello}[said])
        assert SECONDS / 2 < until_left(tunnel) < 5 * SECONDS
    assert witness.taken_over == 0
    assert ("may not trust the proxy's certificate" in witness.log) is (said == "a hello")


def test_connection_on_which_nothing_more_is_asked_is_left(client: RegistryClient, witness: Witness) -> None:
    image = client.hub.image(client.repo, "1", [random_bytes(MIB, client.repo)])
    for path in ("manifests/1", f"blobs/{image.layers[0]}"):
        with Client(client) as connection:
            connection.send(ask(client, path))
            begun = time.monotonic()
            assert reply(io.BytesIO(connection.rest()))[0] == 200
            assert SECONDS / 2 < time.monotonic() - begun < 5 * SECONDS
    assert witness.taken_over == 0


def test_client_that_asks_again_and_again_is_kept(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "1")
    begun = time.monotonic()
    with client.connect() as kept:
        while time.monotonic() - begun < 2.5 * SECONDS:
            kept.sendall(ask(client, "manifests/1"))
            assert reply(kept.makefile("rb")) == (200, image.manifest)
            time.sleep(SECONDS / 4)


def test_client_may_wait_longer_for_its_answer(client: RegistryClient, witness: Witness) -> None:
    image = client.hub.image(client.repo, "1", [random_bytes(MIB, client.repo)])
    client.hub.faults.add(Fault(kind="manifest", delay=2 * SECONDS, times=1))
    client.hub.faults.add(Fault(kind="cdn", rate=MIB // 3, times=1))
    with client.connect() as kept:
        for path, body in (
            ("manifests/1", image.manifest),
            (f"blobs/{image.layers[0]}", random_bytes(MIB, client.repo)),
        ):
            kept.sendall(ask(client, path))
            assert reply(kept.makefile("rb")) == (200, body)
    assert witness.taken_over == 0


def test_client_that_stops_reading_is_left_and_its_file_released(client: RegistryClient, witness: Witness) -> None:
    large = Synthetic(24 * MIB, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    client.blob(digest)
    client.wait_until_stored()
    dawdler = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    assert is_open(client.program, digest)
    wait_until(lambda: not is_open(client.program, digest), 5 * SECONDS)
    answer = dawdler.finish()
    assert not answer.complete
    assert len(answer.body) < large.size
    dawdler.close()
    wait_until(lambda: any(line.endswith("broken off") for line in witness.lines))
    assert witness.taken_over == 0
