"""Many clients at once share one download, and a client that disconnects or stops reading does not disturb others."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.http_client import Answer, Exchange, head, wait_until
from support.program import HUB_HOST, Program, RegistryClient, program_fixtures
from support.standin import Fault, Synthetic, random_bytes
from support.worker_processes import open_sockets, resident_bytes

program, client = program_fixtures(hubcache_tag_ttl="600")

CLIENTS = 24
MIB = 1 << 20


def at_once(*requests: Callable[[], Answer]) -> list[Answer]:
    """Send requests from threads that start together; returns the answers."""
    barrier = threading.Barrier(len(requests))

    def run(one: Callable[[], Answer]) -> Answer:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(run, requests))


def test_cold_blob_is_downloaded_once_for_clients_of_both_listeners(client: RegistryClient, program: Program) -> None:
    data = random_bytes(2_000_000, client.repo)
    digest = client.hub.blob(client.repo, data)
    client.hub.faults.add(Fault(kind="cdn", delay=0.3))
    other = program.client("mirror" if client.is_proxy else "proxy")
    requests = [lambda: client.blob(digest)] * (CLIENTS // 2)
    requests += [lambda: other.blob(digest, repo=client.repo)] * (CLIENTS // 2)
    answers = at_once(*requests)
    assert [(answer.status, answer.body == data) for answer in answers] == [(200, True)] * CLIENTS
    assert client.hub.count(kind="cdn", method="GET") == 1
    assert client.hub.sent(kind="cdn") == len(data)


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_cold_manifest_costs_one_pull_for_all_clients(client: RegistryClient, by: str) -> None:
    image = client.hub.image(client.repo, "latest", annotations={"of": client.repo})
    client.hub.limit(100)
    client.hub.faults.add(Fault(kind="manifest", delay=0.3))
    reference = "latest" if by == "tag" else image.digest
    answers = at_once(*[lambda: client.manifest(reference)] * CLIENTS)
    assert {(answer.status, answer.body) for answer in answers} == {(200, image.manifest)}
    assert client.hub.remaining == 99


def test_fill_is_shared_by_clients_of_two_repositories(client: RegistryClient, program: Program) -> None:
    data = random_bytes(1_000_000, client.repo)
    other = program.client(client.listener)
    digest = client.hub.blob(client.repo, data)
    client.hub.blob(other.repo, data)
    fault = client.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=500_000))
    first = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    assert first.read(1000) == data[:1000]
    second = other.send("GET", f"/v2/{other.repo}/blobs/{digest}")
    assert second.read(1000) == data[:1000]
    client.hub.faults.remove(fault)
    assert first.finish().body == second.finish().body == data[1000:]
    assert client.hub.count(kind="cdn", method="GET") == 1
    first.close()
    second.close()


def test_every_client_receives_bytes_during_the_fill(client: RegistryClient) -> None:
    data = random_bytes(1_000_000, client.repo)
    digest = client.hub.blob(client.repo, data)
    fault = client.hub.faults.add(Fault(kind="cdn", pause_after=400_000))
    exchanges = [client.send("GET", f"/v2/{client.repo}/blobs/{digest}") for _ in range(3)]
    assert [exchange.read(400_000) == data[:400_000] for exchange in exchanges] == [True] * 3
    client.hub.faults.remove(fault)
    assert [exchange.finish().body == data[400_000:] for exchange in exchanges] == [True] * 3
    for exchange in exchanges:
        exchange.close()


def test_last_byte_is_held_back_until_the_digest_is_verified(client: RegistryClient) -> None:
    """Otherwise a client could take a wrong body for a complete one."""
    data = random_bytes(100_000, client.repo)
    digest = client.hub.blob(client.repo, data)
    corrupt = client.hub.faults.add(Fault(kind="cdn", corrupt_at=99_999))
    for answer in at_once(*[lambda: client.blob(digest)] * 8):
        if answer.status == 200:  # the answer began before the digest was known to be wrong
            assert not answer.complete
            assert data.startswith(answer.body)
        else:
            assert answer.failure == (502, "UNAVAILABLE"), answer.body
    assert corrupt.hits > 0
    client.hub.faults.clear()
    assert client.blob(digest).body == data


def test_fill_goes_on_when_its_client_disconnects(client: RegistryClient, program: Program) -> None:
    data = random_bytes(1_000_000, client.repo)
    digest = client.hub.blob(client.repo, data)
    fault = client.hub.faults.add(Fault(kind="cdn", pause_after=400_000))
    exchange = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    exchange.read(1000)
    connected = open_sockets(program)
    exchange.close()
    wait_until(lambda: open_sockets(program) < connected, what="the end of the connection")
    client.hub.faults.remove(fault)
    client.wait_until_stored()
    assert client.blob(digest).body == data
    assert (client.hub.count(kind="cdn"), client.hub.sent(kind="cdn")) == (1, len(data))


def test_fill_goes_on_when_its_client_disconnects_before_the_first_byte(client: RegistryClient) -> None:
    data = random_bytes(100_000, client.repo)
    digest = client.hub.blob(client.repo, data)
    fault = client.hub.faults.add(Fault(kind="cdn", pause_after=0))
    connection = client.connect()
    connection.sendall(head("GET", f"/v2/{client.repo}/blobs/{digest}", {"Host": HUB_HOST}))
    wait_until(lambda: client.hub.count(kind="cdn") == 1)
    connection.close()
    client.hub.faults.remove(fault)
    client.wait_until_stored()
    assert client.blob(digest).body == data
    assert client.hub.count(kind="cdn", method="GET") == 1


def test_client_that_stops_reading_does_not_block_others(client: RegistryClient) -> None:
    large = Synthetic(24 * MIB, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    stalled = [client.send("GET", f"/v2/{client.repo}/blobs/{digest}") for _ in range(3)]
    assert client.blob(digest).body == large.read(0, large.size)
    client.wait_until_stored()
    assert client.hub.count(kind="cdn", method="GET") == 1
    assert stalled[0].finish().body == large.read(0, large.size)
    for exchange in stalled:
        exchange.close()


def test_clients_that_stop_reading_use_little_memory(client: RegistryClient, program: Program) -> None:
    large = Synthetic(64 * MIB, seed="stalled")
    digest = client.hub.blob(client.repo, large)
    assert client.blob(digest).status == 200
    client.wait_until_stored()
    before = resident_bytes(program)
    stalled = [client.send("GET", f"/v2/{client.repo}/blobs/{digest}") for _ in range(16)]
    assert client.blob(digest).status == 200  # by its end, the stalled clients have been sent all that they accept
    assert resident_bytes(program) - before < 60 * MIB
    for exchange in stalled:
        exchange.close()


# -- ranges during a fill


def paused_fill(client: RegistryClient, size: int) -> tuple[Synthetic, str, Fault, Exchange]:
    """Begin a fill that pauses after 1 MiB; returns the blob, its digest, the fault and the client's exchange."""
    large = Synthetic(size, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    fault = client.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=MIB, times=1))
    exchange = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    assert exchange.read(1000) == large.read(0, 1000)
    return large, digest, fault, exchange


def test_range_far_ahead_of_a_slow_fill_is_requested_separately(client: RegistryClient) -> None:
    large, digest, fault, exchange = paused_fill(client, 48 * MIB)
    answer = client.blob(digest, {"Range": f"bytes={40 * MIB}-{40 * MIB + 99_999}"})
    assert (answer.status, answer.body) == (206, large.read(40 * MIB, 40 * MIB + 100_000))
    own = client.hub.requests(kind="cdn")[1]
    assert own.header("Range") == f"bytes={40 * MIB}-{40 * MIB + 99_999}"
    wait_until(lambda: own.sent == 100_000)
    assert not fault.release.is_set()
    client.hub.faults.remove(fault)
    assert exchange.finish().body == large.read(1000, large.size)
    exchange.close()


def test_range_near_a_slow_fill_waits_for_it_without_a_separate_request(client: RegistryClient) -> None:
    large, digest, fault, exchange = paused_fill(client, 4 * MIB)
    fields = {"Host": HUB_HOST, "Connection": "close", "Range": f"bytes={2 * MIB}-{2 * MIB + 9}"}
    with client.connect() as connection:
        connection.sendall(head("GET", f"/v2/{client.repo}/blobs/{digest}", fields))
        client.request("GET", "/v2/")  # once it is answered, the program has received the range request, too
        assert client.hub.count(kind="cdn", method="GET") == 1
        client.hub.faults.remove(fault)
        assert Exchange(connection, "GET").finish().body == large.read(2 * MIB, 2 * MIB + 10)
    assert client.hub.count(kind="cdn", method="GET") == 1
    exchange.close()


def test_parallel_ranges_of_a_cold_blob_share_one_download(client: RegistryClient) -> None:
    """containerd downloads a layer in parallel ranges."""
    large = Synthetic(16 * MIB, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    parts = [(at, at + 2 * MIB) for at in range(0, large.size, 2 * MIB)]
    answers = at_once(*[lambda p=part: client.blob(digest, {"Range": f"bytes={p[0]}-{p[1] - 1}"}) for part in parts])
    assert b"".join(answer.body for answer in answers) == large.read(0, large.size)
    assert client.hub.count(kind="cdn", method="GET") == 1
