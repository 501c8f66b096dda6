"""Many clients at once: one fetch for all, and nobody who leaves or dawdles spoils it for others."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import program
from support.http_client import Answer, Exchange, head, wait_until
from support.program import Door, Rig
from support.standin import Fault, Synthetic, random_bytes

rig, door = program.fixtures(hubcache_tag_ttl="600")

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


def waits(door: Door, kind: str, times: int = 1) -> None:
    """Until so many requests of the kind have reached the Hub."""
    wait_until(lambda: door.hub.count(kind=kind) >= times)


def test_cold_blob_is_fetched_once_for_all_clients_of_both_doors(door: Door, rig: Rig) -> None:
    data = random_bytes(2_000_000, door.repo)
    digest = door.hub.blob(door.repo, data)
    door.hub.faults.add(Fault(kind="cdn", delay=0.3))
    other = rig.door("mirror" if door.is_proxy else "proxy")
    clients = [lambda: door.blob(digest)] * (CLIENTS // 2)
    clients += [lambda: other.blob(digest, repo=door.repo)] * (CLIENTS // 2)
    answers = at_once(*clients)
    assert [(answer.status, answer.body == data) for answer in answers] == [(200, True)] * CLIENTS
    assert door.hub.count(kind="cdn", method="GET") == 1
    assert door.hub.sent(kind="cdn") == len(data)


@pytest.mark.parametrize("by", ["tag", "digest"])
def test_cold_manifest_costs_one_pull_for_all_clients(door: Door, by: str) -> None:
    image = door.hub.image(door.repo, "latest", annotations={"of": door.repo})
    door.hub.limit(100)
    door.hub.faults.add(Fault(kind="manifest", delay=0.3))
    reference = "latest" if by == "tag" else image.digest
    answers = at_once(*[lambda: door.manifest(reference)] * CLIENTS)
    assert {(answer.status, answer.body) for answer in answers} == {(200, image.manifest)}
    assert door.hub.remaining == 99


def test_two_repositories_that_ask_for_one_cold_blob_share_the_fetch(door: Door, rig: Rig) -> None:
    data = random_bytes(1_000_000, door.repo)
    other = rig.door(door.name)
    digest = door.hub.blob(door.repo, data)
    door.hub.blob(other.repo, data)
    fault = door.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=500_000))
    first = door.send("GET", f"/v2/{door.repo}/blobs/{digest}")
    assert first.read(1000) == data[:1000]
    second = other.send("GET", f"/v2/{other.repo}/blobs/{digest}")
    assert second.read(1000) == data[:1000]
    door.hub.faults.remove(fault)
    assert first.finish().body == second.finish().body == data[1000:]
    assert door.hub.count(kind="cdn", method="GET") == 1
    first.close()
    second.close()


def test_bytes_reach_every_client_while_the_fill_goes_on(door: Door) -> None:
    data = random_bytes(1_000_000, door.repo)
    digest = door.hub.blob(door.repo, data)
    fault = door.hub.faults.add(Fault(kind="cdn", pause_after=400_000))
    exchanges = [door.send("GET", f"/v2/{door.repo}/blobs/{digest}") for _ in range(3)]
    assert [exchange.read(400_000) == data[:400_000] for exchange in exchanges] == [True] * 3
    door.hub.faults.remove(fault)
    assert [exchange.finish().body == data[400_000:] for exchange in exchanges] == [True] * 3
    for exchange in exchanges:
        exchange.close()


def test_last_byte_is_held_back_until_the_digest_is_verified(door: Door) -> None:
    """Else a client could take a wrong body for a complete one."""
    data = random_bytes(100_000, door.repo)
    digest = door.hub.blob(door.repo, data)
    door.hub.faults.add(Fault(kind="cdn", corrupt_at=99_999))
    for answer in at_once(*[lambda: door.blob(digest)] * 8):
        if answer.status == 200:  # it began before it was known
            assert not answer.complete
            assert data.startswith(answer.body)
        else:
            assert answer.failure == (502, "UNAVAILABLE"), answer.body
    door.hub.faults.clear()
    assert door.blob(digest).body == data


def test_client_that_leaves_does_not_abort_the_fill(door: Door) -> None:
    data = random_bytes(1_000_000, door.repo)
    digest = door.hub.blob(door.repo, data)
    fault = door.hub.faults.add(Fault(kind="cdn", pause_after=400_000))
    leaver = door.send("GET", f"/v2/{door.repo}/blobs/{digest}")
    leaver.read(1000)
    leaver.close()
    time.sleep(0.2)
    door.hub.faults.remove(fault)
    door.settle()
    assert door.blob(digest).body == data
    assert (door.hub.count(kind="cdn"), door.hub.sent(kind="cdn")) == (1, len(data))


def test_client_that_leaves_before_the_first_byte_does_not_abort_the_fill(door: Door) -> None:
    data = random_bytes(100_000, door.repo)
    digest = door.hub.blob(door.repo, data)
    fault = door.hub.faults.add(Fault(kind="cdn", pause_after=0))
    connection = door.connect()
    connection.sendall(head("GET", f"/v2/{door.repo}/blobs/{digest}", {"Host": program.HUB_HOST}))
    waits(door, "cdn")
    connection.close()
    door.hub.faults.remove(fault)
    door.settle()
    assert door.blob(digest).body == data
    assert door.hub.count(kind="cdn", method="GET") == 1


def test_client_that_stops_reading_does_not_hold_up_others(door: Door) -> None:
    large = Synthetic(24 * MIB, seed=door.repo)
    digest = door.hub.blob(door.repo, large)
    dawdlers = [door.send("GET", f"/v2/{door.repo}/blobs/{digest}") for _ in range(3)]
    begun = time.monotonic()
    assert door.blob(digest).body == large.read(0, large.size)
    door.settle()
    assert time.monotonic() - begun < 10
    assert door.hub.count(kind="cdn", method="GET") == 1
    assert dawdlers[0].finish().body == large.read(0, large.size)
    for dawdler in dawdlers:
        dawdler.close()


def test_clients_that_stop_reading_hold_no_memory(door: Door) -> None:
    large = Synthetic(64 * MIB, seed="dawdle")
    digest = door.hub.blob(door.repo, large)
    door.blob(digest)
    door.settle()
    before = resident(door)
    dawdlers = [door.send("GET", f"/v2/{door.repo}/blobs/{digest}") for _ in range(16)]
    time.sleep(0.5)
    assert resident(door) - before < 60 * MIB
    for dawdler in dawdlers:
        dawdler.close()


def resident(door: Door) -> int:
    """Memory of the product in bytes."""
    with open(f"/proc/{door.product.pid}/statm") as file:  # noqa: PTH123 - not a file on disk
        return int(file.read().split()[1]) * 4096


# -- ranges beside a fill


def slow_fill(door: Door, size: int) -> tuple[Synthetic, str, Fault, Exchange]:
    """A fill that stands still after 1 MiB."""
    large = Synthetic(size, seed=door.repo)
    digest = door.hub.blob(door.repo, large)
    fault = door.hub.faults.add(Fault(kind="cdn", method="GET", pause_after=MIB, times=1))
    filler = door.send("GET", f"/v2/{door.repo}/blobs/{digest}")
    assert filler.read(1000) == large.read(0, 1000)
    return large, digest, fault, filler


def test_range_far_ahead_of_a_slow_fill_does_not_wait_for_it(door: Door) -> None:
    large, digest, fault, filler = slow_fill(door, 48 * MIB)
    answer = door.blob(digest, {"Range": f"bytes={40 * MIB}-{40 * MIB + 99_999}"})
    assert (answer.status, answer.body) == (206, large.read(40 * MIB, 40 * MIB + 100_000))
    beside = door.hub.requests(kind="cdn")[1]
    assert beside.header("Range") == f"bytes={40 * MIB}-{40 * MIB + 99_999}"
    wait_until(lambda: beside.sent == 100_000)
    assert fault.release.is_set() is False
    door.hub.faults.remove(fault)
    assert filler.finish().body == large.read(1000, large.size)
    filler.close()


def test_range_near_a_slow_fill_waits_for_it_and_costs_no_request(door: Door) -> None:
    large, digest, fault, filler = slow_fill(door, 4 * MIB)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(door.blob, digest, {"Range": f"bytes={2 * MIB}-{2 * MIB + 9}"})
        time.sleep(0.2)
        assert not waiting.done()
        door.hub.faults.remove(fault)
        assert waiting.result().body == large.read(2 * MIB, 2 * MIB + 10)
    assert door.hub.count(kind="cdn", method="GET") == 1
    filler.close()


def test_parallel_ranges_of_one_cold_blob_are_one_fetch(door: Door) -> None:
    """As containerd's parallel fetch asks."""
    large = Synthetic(16 * MIB, seed=door.repo)
    digest = door.hub.blob(door.repo, large)
    parts = [(at, at + 2 * MIB) for at in range(0, large.size, 2 * MIB)]
    answers = at_once(*[lambda p=part: door.blob(digest, {"Range": f"bytes={p[0]}-{p[1] - 1}"}) for part in parts])
    assert b"".join(answer.body for answer in answers) == large.read(0, large.size)
    assert door.hub.count(kind="cdn", method="GET") == 1
