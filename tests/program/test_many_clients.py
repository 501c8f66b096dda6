"""Many clients at once: one fetch for all, and nobody who leaves or dawdles spoils it for others."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.http_client import Answer, Exchange, head, wait_until
from support.program import HUB_HOST, Program, RegistryClient, program_fixtures
from support.standin import Fault, Synthetic, random_bytes

program, client = program_fixtures(hubcache_tag_ttl="600")

CLIENTS = 24
MIB = 1 << 20


def at_once(*work: Callable[[], Answer]) -> list[Answer]:
    """The answers of clients that start together."""
    barrier = threading.Barrier(len(work))

    def run(one: Callable[[], Answer]) -> Answer:
        barrier.wait()
        return one()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))


def waits(client: RegistryClient, kind: str, times: int = 1) -> None:
    """Until so many requests of the kind have reached the Hub."""
    wait_until(lambda: client.hub.count(kind=kind) >= times)


def test_cold_blob_is_fetched_once_for_all_clients_of_both_doors(client: RegistryClient, program: Program) -> None:
    data = random_bytes(2_000_000, client.repo)
    digest = client.hub.blob(client.repo, data)
    client.hub.faults.add(Fault(kind="cdn", delay=0.3))
    other = program.client("mirror" if client.is_proxy else "proxy")
    clients = [lambda: client.blob(digest)] * (CLIENTS // 2)
    clients += [lambda: other.blob(digest, repo=client.repo)] * (CLIENTS // 2)
    answers = at_once(*clients)
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


def test_two_repositories_that_ask_for_one_cold_blob_share_the_fetch(client: RegistryClient, program: Program) -> None:
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


def test_bytes_reach_every_client_while_the_fill_goes_on(client: RegistryClient) -> None:
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
    """Else a client could take a wrong body for a complete one."""
    data = random_bytes(100_000, client.repo)
    digest = client.hub.blob(client.repo, data)
    client.hub.faults.add(Fault(kind="cdn", corrupt_at=99_999))
    for answer in at_once(*[lambda: client.blob(digest)] * 8):
        if answer.status == 200:  # it began before it was known
            assert not answer.complete
            assert data.startswith(answer.body)
        else:
            assert answer.failure == (502, "UNAVAILABLE"), answer.body
    client.hub.faults.clear()
    assert client.blob(digest).body == data


def test_client_that_leaves_does_not_abort_the_fill(client: RegistryClient) -> None:
    data = random_bytes(1_000_000, client.repo)
    digest = client.hub.blob(client.repo, data)
    fault = client.hub.faults.add(Fault(kind="cdn", pause_after=400_000))
    leaver = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    leaver.read(1000)
    leaver.close()
    time.sleep(0.2)
    client.hub.faults.remove(fault)
    client.wait_until_stored()
    assert client.blob(digest).body == data
    assert (client.hub.count(kind="cdn"), client.hub.sent(kind="cdn")) == (1, len(data))


def test_client_that_leaves_before_the_first_byte_does_not_abort_the_fill(client: RegistryClient) -> None:
    data = random_bytes(100_000, client.repo)
    digest = client.hub.blob(client.repo, data)
    fault = client.hub.faults.add(Fault(kind="cdn", pause_after=0))
    connection = client.connect()
    connection.sendall(head("GET", f"/v2/{client.repo}/blobs/{digest}", {"Host": HUB_HOST}))
    waits(client, "cdn")
    connection.close()
    client.hub.faults.remove(fault)
    client.wait_until_stored()
    assert client.blob(digest).body == data
    assert client.hub.count(kind="cdn", method="GET") == 1


def test_client_that_stops_reading_does_not_hold_up_others(client: RegistryClient) -> None:
    large = Synthetic(24 * MIB, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    dawdlers = [client.send("GET", f"/v2/{client.repo}/blobs/{digest}") for _ in range(3)]
    begun = time.monotonic()
    assert client.blob(digest).body == large.read(0, large.size)
    client.wait_until_stored()
    assert time.monotonic() - begun < 10
    assert client.hub.count(kind="cdn", method="GET") == 1
    assert dawdlers[0].finish().body == large.read(0, large.size)
    for dawdler in dawdlers:
        dawdler.close()


def test_clients_that_stop_reading_hold_no_memory(client: RegistryClient) -> None:
    large = Synthetic(64 * MIB, seed="dawdle")
    digest = client.hub.blob(client.repo, large)
    client.blob(digest)
    client.wait_until_stored()
    before = resident(client)
    dawdlers = [client.send("GET", f"/v2/{client.repo}/blobs/{digest}") for _ in range(16)]
    time.sleep(0.5)
    assert resident(client) - before < 60 * MIB
    for dawdler in dawdlers:
        dawdler.close()


def resident(client: RegistryClient) -> int:
    """Memory of the product in bytes."""
    with open(f"/proc/{client.program.pid}/statm") as file:  # noqa: PTH123 - not a file on disk
        return int(file.read().split()[1]) * 4096


# -- ranges beside a fill


def slow_fill(client: RegistryClient, size: int) -> tuple[Synthetic, str, Fault, Exchange]:
    """A fill that stands still after 1 MiB."""
    large = Synthetic(size, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    fault = client.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=MIB, times=1))
    filler = client.send("GET", f"/v2/{client.repo}/blobs/{digest}")
    assert filler.read(1000) == large.read(0, 1000)
    return large, digest, fault, filler


def test_range_far_ahead_of_a_slow_fill_does_not_wait_for_it(client: RegistryClient) -> None:
    large, digest, fault, filler = slow_fill(client, 48 * MIB)
    answer = client.blob(digest, {"Range": f"bytes={40 * MIB}-{40 * MIB + 99_999}"})
    assert (answer.status, answer.body) == (206, large.read(40 * MIB, 40 * MIB + 100_000))
    beside = client.hub.requests(kind="cdn")[1]
    assert beside.header("Range") == f"bytes={40 * MIB}-{40 * MIB + 99_999}"
    wait_until(lambda: beside.sent == 100_000)
    assert fault.release.is_set() is False
    client.hub.faults.remove(fault)
    assert filler.finish().body == large.read(1000, large.size)
    filler.close()


def test_range_near_a_slow_fill_waits_for_it_and_costs_no_request(client: RegistryClient) -> None:
    large, digest, fault, filler = slow_fill(client, 4 * MIB)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.blob, digest, {"Range": f"bytes={2 * MIB}-{2 * MIB + 9}"})
        time.sleep(0.2)
        assert not waiting.done()
        client.hub.faults.remove(fault)
        assert waiting.result().body == large.read(2 * MIB, 2 * MIB + 10)
    assert client.hub.count(kind="cdn", method="GET") == 1
    filler.close()


def test_parallel_ranges_of_one_cold_blob_are_one_fetch(client: RegistryClient) -> None:
    """As containerd's parallel fetch asks."""
    large = Synthetic(16 * MIB, seed=client.repo)
    digest = client.hub.blob(client.repo, large)
    parts = [(at, at + 2 * MIB) for at in range(0, large.size, 2 * MIB)]
    answers = at_once(*[lambda p=part: client.blob(digest, {"Range": f"bytes={p[0]}-{p[1] - 1}"}) for part in parts])
    assert b"".join(answer.body for answer in answers) == large.read(0, large.size)
    assert client.hub.count(kind="cdn", method="GET") == 1
