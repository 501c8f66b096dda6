"""A client of the stand-in Hub, for tests of the stand-in itself."""

import asyncio
import base64
import json
import ssl
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from support.standin import Hub, Image, random_bytes

BASIC_ALICE = "Basic " + base64.b64encode(b"alice:secret").decode()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["errors"][0]["code"])


def fetch(
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    data: bytes | dict[str, str] | None = None,
    follow: bool = False,
    context: ssl.SSLContext | None = None,
) -> Answer:
    async def run() -> Answer:
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                method, url, headers=headers, data=data, allow_redirects=follow, ssl=context or True
            ) as answer,
        ):
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, await answer.read())

    return asyncio.run(run())


def bearer(hub: Hub, scope: str, authorization: str | None = None) -> dict[str, str]:
    headers = {"Authorization": authorization} if authorization else {}
    answer = fetch(f"{hub.url('token')}/token?service={hub.service}&scope={scope}", headers=headers)
    return {"Authorization": "Bearer " + json.loads(answer.body)["token"]}


def pull(hub: Hub, path: str, method: str = "GET", repo: str = "library/app", **headers: str) -> Answer:
    return fetch(f"{hub.url()}/v2/{repo}/{path}", method, {**bearer(hub, f"repository:{repo}:pull"), **headers})


def app_fixture() -> Any:
    """Return the fixture `app`, an image with two layers."""

    @pytest.fixture
    def app(hub: Hub) -> Image:
        return hub.image("library/app", "latest", [random_bytes(300_000, 1), random_bytes(5_000, 2)])

    return app
