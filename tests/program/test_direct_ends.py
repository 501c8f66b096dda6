"""Direct connections whose clients disconnect, are slow or send nothing: they end in time, and nothing stays open."""

import contextlib
import io
import socket
import time

import pytest
from support.http_client import TIMEOUT, wait_until
from support.program import HUB_HOST, RegistryClient, program_fixtures, proxy_client_fixture
from support.standin import Fault, Synthetic, random_bytes
from support.tls_client import (
    NewLog,
    RawClient,
    has_file_open,
    make_certificates,
    new_log_fixture,
    read_answer,
    request_head,
)

MIB = 1 << 20
SECONDS = 1
"""Seconds that a client may be silent. mitmproxy's default is 600."""

program, client = program_fixtures(
    make_certificates, hubcache_workers="1", hubcache_tag_ttl="600", tcp_timeout=str(SECONDS)
)
proxy_client = proxy_client_fixture()
new_log = new_log_fixture()


def wait_until_closed(connection: socket.socket) -> None:
    """Wait until the program closes the connection; fails after `TIMEOUT`, which is less than mitmproxy's default."""
    connection.settimeout(TIMEOUT)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(65536):
            pass


# -- clients that disconnect


def test_fill_goes_on_when_its_client_disconnects(client: RegistryClient, new_log: NewLog) -> None:
    data = random_bytes(MIB, client.repo)
    digest = client.hub.blob(client.repo, data)
    fault = client.hub.faults.add(Fault(kind="cdn", pause_after=MIB // 2))
    reader = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    reader.read(1000)
    reader.close()
    client.hub.faults.remove(fault)
    client.wait_until_stored()
    assert client.blob(digest).body == data
    assert (client.hub.count(kind="cdn"), new_log.mitmproxy_clients) == (1, 0)


def test_nothing_stays_open_when_a_client_disconnects_before_its_answer(
    client: RegistryClient, new_log: NewLog
) -> None:
    data = random_bytes(MIB, client.repo)
    digest = client.hub.blob(client.repo, data)
    fault = client.hub.faults.add(Fault(kind="blob", delay=0.5))
    with RawClient(client) as reader:
        reader.send(request_head(client, f"blobs/{digest}"))
        wait_until(lambda: client.hub.count(kind="blob") == 1)
    client.hub.faults.remove(fault)
    wait_until(lambda: any(line.endswith("broken off") for line in new_log.answer_lines))
    client.wait_until_stored()
    wait_until(lambda: not has_file_open(client.program, digest))
    assert client.blob(digest).body == data


def test_file_is_closed_when_its_client_disconnects(client: RegistryClient, new_log: NewLog) -> None:
    """The space of a removed file is free only when no process has it open."""
    large = Synthetic(24 * MIB, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    client.blob(digest)
    client.wait_until_stored()
    reader = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    assert reader.read(MIB) == large.read(0, MIB)
    assert has_file_open(client.program, digest)
    reader.close()
    wait_until(lambda: not has_file_open(client.program, digest))
    assert new_log.mitmproxy_clients == 0


# -- silent clients


def test_silent_client_is_disconnected(client: RegistryClient, new_log: NewLog) -> None:
    port = client.program.proxy if client.is_proxy else client.program.mirror
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        wait_until_closed(connection)
    assert time.monotonic() - begun > SECONDS / 2
    assert new_log.mitmproxy_clients == 0


@pytest.mark.parametrize("sent", ["nothing", "half a hello", "a hello"])
def test_silent_client_of_a_tunnel_is_disconnected(proxy_client: RegistryClient, new_log: NewLog, sent: str) -> None:
    begun = time.monotonic()
    with proxy_client.program.tunnel(HUB_HOST, 443) as tunnel:
        connection = RawClient(proxy_client, connection=tunnel)
        hello = connection.hello()
        tunnel.sendall({"nothing": b"", "half a hello": hello[:100], "a hello": hello}[sent])
        wait_until_closed(tunnel)
    assert time.monotonic() - begun > SECONDS / 2
    assert new_log.mitmproxy_clients == 0
    assert ("may not trust the proxy's certificate" in new_log.text) is (sent == "a hello")


def test_connection_without_further_requests_is_closed(client: RegistryClient, new_log: NewLog) -> None:
    image = client.hub.image(client.repo, "1", [random_bytes(MIB, client.repo)])
    for path in ("manifests/1", f"blobs/{image.layers[0]}"):
        begun = time.monotonic()
        with RawClient(client) as connection:
            connection.send(request_head(client, path))
            assert read_answer(io.BytesIO(connection.receive_all()))[0] == 200
        assert time.monotonic() - begun > SECONDS / 2
    assert new_log.mitmproxy_clients == 0


def test_connection_with_further_requests_is_kept(client: RegistryClient) -> None:
    image = client.hub.image(client.repo, "1")
    begun = time.monotonic()
    with client.connect() as kept:
        while time.monotonic() - begun < 2.5 * SECONDS:
            kept.sendall(request_head(client, "manifests/1"))
            assert read_answer(kept.makefile("rb")) == (200, image.manifest)
            time.sleep(SECONDS / 20)


def test_client_may_wait_longer_for_its_answer(client: RegistryClient, new_log: NewLog) -> None:
    image = client.hub.image(client.repo, "1", [random_bytes(MIB, client.repo)])
    client.hub.faults.add(Fault(kind="manifest", delay=2 * SECONDS, times=1))
    client.hub.faults.add(Fault(kind="cdn", rate=MIB // 3, times=1))
    with client.connect() as kept:
        for path, body in (
            ("manifests/1", image.manifest),
            (f"blobs/{image.layers[0]}", random_bytes(MIB, client.repo)),
        ):
            kept.sendall(request_head(client, path))
            assert read_answer(kept.makefile("rb")) == (200, body)
    assert new_log.mitmproxy_clients == 0


def test_file_is_closed_when_its_client_stops_reading(client: RegistryClient, new_log: NewLog) -> None:
    large = Synthetic(24 * MIB, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    client.blob(digest)
    client.wait_until_stored()
    slow = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    assert has_file_open(client.program, digest)
    wait_until(lambda: not has_file_open(client.program, digest))
    answer = slow.finish()
    assert not answer.complete
    assert len(answer.body) < large.size
    slow.close()
    wait_until(lambda: any(line.endswith("broken off") for line in new_log.answer_lines))
    assert new_log.mitmproxy_clients == 0
