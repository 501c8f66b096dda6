import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import proxy
import pytest
from people import until
from proxy import HUB_HOST, Door, Rig
from test_reception_alone import ASKED, Question, Visit, always, small
from hubcache.serve.messages import Answer, Forward, Request, Result
from wire import head, wait_until
from witness import Client, Witness, ask, reply, warm
import base64
ALICE = "Basic " + base64.b64encode(b"alice:secret").decode()

# D2
async def test_client_that_left_while_its_request_was_thought_about_is_not_handed_over() -> None:
    question = Question()
    visit = Visit(question)
    visit.say(ASKED)
    visit.leave()
    question.settle(Forward(None))
    for _ in range(10):
        await asyncio.sleep(0)
    assert visit.taken_over == []

# D3
async def test_client_that_does_not_read_gets_no_more_answers() -> None:
    visit = Visit(always)
    visit.reception.pause_writing()
    visit.say(ASKED * 100)
    for _ in range(10):
        await asyncio.sleep(0)
    assert visit.transport.sent.count(b"\r\n\r\nbody") <= 1
    visit.leave()

# D4
async def test_empty_connection_header_keeps() -> None:
    visit = Visit(always)
    visit.say(head("GET", "/v2/", {"Host": "x", "Connection": ""}))
    assert not visit.transport.is_closing()
    visit.leave()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with proxy.running(hubcache_tag_ttl="600") as running:
        warm(running)
        yield running

# D1
@pytest.mark.parametrize("v", ["1.3","1.2"])
def test_broken_record_behind_a_request_is_no_defect(rig: Rig, v) -> None:
    import ssl
    door = rig.door("proxy")
    image = door.hub.image(door.repo, "1")
    door.manifest("1")
    with Client(door, way=door.product.tunnel(HUB_HOST,443)) as client:
        if v=="1.2": client._trust.maximum_version=ssl.TLSVersion.TLSv1_2
        client.way.sendall(client.hello()); client.shake()
        client.way.sendall(client.sealed(ask(door, "manifests/1")) + b"\x17\x03\x03\x00\x20" + bytes(32))
        print(client.rest())
    rig.check()

def test_broken_record_while_waiting(rig: Rig) -> None:
    door = rig.door("proxy")
    from standin import Fault
    image = door.hub.image(door.repo, "1")
    f=door.hub.faults.add(Fault(kind="manifest", delay=.5))
    with Client(door) as client:
        client.send(ask(door, "manifests/1"))
        wait_until(lambda: door.hub.count(kind="manifest")==1)
        client.way.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        print(client.rest())
    rig.check()

# D3 real
def test_memory(rig: Rig) -> None:
    door = rig.door("mirror")
    data = b"x"*60_000
    digest = door.hub.blob(door.repo, data)
    door.blob(digest); door.settle(); door.blob(digest)
    def rss():
        return int(Path(f"/proc/{door.product.pid}/statm").read_text().split()[1])*4096
    before=rss()
    c=door.connect(); c.settimeout(3)
    n=0
    try:
        for _ in range(20):
            c.sendall(ask(door, f"blobs/{digest}")*100); n+=100
    except TimeoutError: pass
    import time; time.sleep(2)
    grew=rss()-before
    print(n, grew/2**20)
    c.close()
    assert grew < 30<<20

# D-A
def test_end_of_tls_after_passed_on(rig: Rig) -> None:
    rig.hub.user("alice", "secret")
    door=rig.door("proxy"); door.repo="alice/zz"
    image = door.hub.image(door.repo, "1")
    door.hub.private(door.repo, {"alice": "secret"})
    own={"Authorization": f"Bearer {door.token(f'repository:{door.repo}:pull', ALICE)}"}
    with Client(door) as client:
        client.way.settimeout(5)
        client.way.sendall(client.sealed(ask(door, "manifests/1", **own)) + client.goodbye())
        assert reply(client.answers) == (200, image.manifest)
        assert client.answers.read() == b""
