"""The acceptance of a client's token for private images, and how long it lasts."""

import asyncio
import base64
from math import inf

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve import access
from hubcache.serve.messages import Answer, Listener
from support.engine import Cache, read
from support.standin import Fault, Hub, Image, random_bytes
from support.users import SECRET, Clock, bearer, settled, until


async def test_invalid_token_is_refused_while_a_private_fill_starts(
    cache_with_secret: Cache, hub: Hub, secret: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both requests find no fill, and the access of one client does not show that the other may read the blob."""
    blob = f"/v2/{SECRET}/blobs/{hub.blob(SECRET, random_bytes(200_000, 'new'))}"
    assert (await cache_with_secret.get(Listener.PROXY, blob))[0] == 401
    await settled(cache_with_secret)  # or the other client might find the public fill, and be refused earlier
    engine = cache_with_secret.engine
    mark_private, both = engine._writer.mark_private, asyncio.Event()
    marked: list[Digest] = []

    async def mark_in_turn(digest: Digest) -> bool:
        """Let both requests find no fill; the second goes on when the first has started its fill."""
        is_first = not marked
        marked.append(digest)
        if not is_first:
            both.set()
            await until(lambda: engine.fills.get(digest) is not None)
        await both.wait()
        return await mark_private(digest)

    monkeypatch.setattr(engine._writer, "mark_private", mark_in_turn)
    fault = hub.faults.add(Fault(kind="cdn", method="GET", pause_after=1000))
    tokens = (bearer(hub, "alice", SECRET), "Bearer stolen-and-expired")
    requests = [cache_with_secret.request(Listener.PROXY, "GET", blob, authorization=token) for token in tokens]
    answers = await asyncio.gather(*(cache_with_secret.engine.service.answer(request) for request in requests))
    hub.faults.remove(fault)
    statuses = []
    for answer in answers:
        assert isinstance(answer, Answer)
        statuses.append(answer.status)
        await read(answer)
    assert statuses == [200, 401]


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (b'{"exp": 110}', 10),
        (b'{"exp": 90.5}', -9.5),
        (b'{"exp": "soon"}', inf),
        (b"{}", inf),
        (b"[1]", inf),
        (b"\xff", inf),
    ],
)
def test_remaining_life_is_read_from_a_token(claims: bytes, expected: float) -> None:
    encoded = base64.urlsafe_b64encode(claims).decode().rstrip("=")
    assert access.remaining_life(f"Bearer e30.{encoded}.sig", 100) == expected


@pytest.mark.parametrize("reader", ["Bearer opaque", "Basic YTpi", "Bearer a.b", "Bearer a.b.c", "Bearer e30.\u00e9.x"])
def test_remaining_life_of_other_credentials_is_infinite(reader: str) -> None:
    assert access.remaining_life(reader, 100) == inf


async def test_acceptance_of_a_token_ends_with_the_token(
    cache_with_secret: Cache, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, cache_with_secret)
    claims = base64.urlsafe_b64encode(f'{{"exp": {clock.time() + 20}}}'.encode()).decode().rstrip("=")
    token = f"Bearer e30.{claims}.sig"
    await cache_with_secret.engine._access.record_accepted("registry-1.docker.io", SECRET, token)
    for ahead, is_open in ((10, True), (21, False)):
        clock.ahead = ahead
        assert cache_with_secret.engine._access.can_read_repository("registry-1.docker.io", SECRET, token) is is_open
