"""Events between nodes, and the secret by which nodes authenticate to each other."""

import asyncio
import json

import aiohttp
import aiohttp.web
import pytest
from hubcache.fleet.peer_client import PeerClient, PeerUnavailable
from hubcache.fleet.secret import load_secret
from support.fleet import memory_bucket
from support.growing import GrowingBlob
from support.peers import DATA, DIGEST, Node, peer_fixtures, received

node, client = peer_fixtures()


@pytest.mark.parametrize("secret", ["other", "", "sécret"])
async def test_node_without_the_secret_is_refused(client: PeerClient, node: Node, secret: str) -> None:
    await GrowingBlob(node.fills, DATA).store()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {secret}"}) as session:
        for method, path in (("GET", f"/blob/{DIGEST}"), ("POST", "/event"), ("GET", "/other")):
            async with session.request(method, f"{node.address}{path}") as response:
                assert response.status == 401
    client.secret = "other"
    with pytest.raises(PeerUnavailable, match="401"):
        await received(client, node)
    client.secret = None
    with pytest.raises(PeerUnavailable, match="not known"):
        await received(client, node)
    assert node.events == []


async def test_server_without_a_secret_refuses_everyone(client: PeerClient, node: Node) -> None:
    node.server.secret = None
    for client.secret in ("None", "secret"):
        with pytest.raises(PeerUnavailable, match="401"):
            await received(client, node)


@pytest.mark.parametrize("secret", ["a\r\nb", "a\nb", "\ud800"])
async def test_event_with_a_secret_that_cannot_be_sent_is_unavailable(
    client: PeerClient, node: Node, secret: str
) -> None:
    client.secret = secret
    with pytest.raises(PeerUnavailable):
        await client.send_event(node.address, {})
    with pytest.raises(PeerUnavailable):
        await received(client, node)


async def test_event_is_received(client: PeerClient, node: Node) -> None:
    await client.send_event(node.address, {"paused": {"seconds": 3}})
    assert node.events == [{"paused": {"seconds": 3}}]


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff"])
async def test_malformed_event_is_refused(node: Node, body: bytes) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": "Bearer secret"}) as session,
        session.post(f"{node.address}/event", data=body) as response,
    ):
        assert response.status == 400
    assert node.events == []


async def test_first_node_makes_the_secret() -> None:
    bucket, _ = memory_bucket()
    made = await asyncio.gather(*(load_secret(bucket) for _ in range(4)))
    assert len(set(made)) == 1
    assert made[0] is not None
    assert len(made[0]) == 64
    assert await load_secret(bucket) == made[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"format": 2, "secret": "0" * 64},
        {"format": 1},
        *(
            {"format": 1, "secret": secret}
            for secret in ("", "0" * 63, "G" * 64, "0" * 62 + "\r\n", "0" * 64 + "\n", 1)
        ),
    ],
)
async def test_secret_of_another_form_is_not_used(fields: dict[str, object]) -> None:
    bucket, _ = memory_bucket()
    await bucket.put("secret", json.dumps(fields).encode())
    assert await load_secret(bucket) is None


async def test_secret_with_line_breaks_is_not_sent(client: PeerClient, node: Node) -> None:
    client.secret = "secret\r\n\r\nGET /other HTTP/1.1\r\n"
    with pytest.raises(PeerUnavailable, match="cannot be reached"):
        await received(client, node)
