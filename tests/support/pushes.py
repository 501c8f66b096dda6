"""Pushes as docker sends them, by the user alice."""

import json
from collections.abc import Callable, Iterator

import pytest

from support.http_client import Answer
from support.program import Fixture, Program, RegistryClient
from support.standin.content import sha256
from support.standin.media import OCI_MANIFEST
from support.users import basic

PASSWORD = "secret"
EMPTY = {"Content-Length": "0"}


def push_client_fixture(prepare: Callable[[Program], None] = lambda _: None) -> Fixture:
    """Return the fixture `push_client` for a module with a `program`, on which `prepare` is called for each test."""

    @pytest.fixture
    def push_client(program: Program) -> Iterator[RegistryClient]:
        """A client of the proxy with a repository that alice may push to."""
        program.reset()
        program.hub.user("alice", PASSWORD)
        prepare(program)
        client = program.client("proxy")
        client.repo = client.repo.replace("library/", "alice/")
        yield client
        program.assert_no_errors()

    return push_client


def credentials(client: RegistryClient, actions: str = "pull,push,delete") -> dict[str, str]:
    """Return the `Authorization` of alice after `docker login`, with a token for these actions."""
    token = client.token(f"repository:{client.repo}:{actions}", basic("alice", PASSWORD))
    return {"Authorization": f"Bearer {token}"}


def push_blob(client: RegistryClient, data: bytes, headers: dict[str, str]) -> str:
    """Push a blob in three requests, at the locations that the registry names; returns its digest."""
    digest = sha256(data)
    begun = client.request("POST", f"/v2/{client.repo}/blobs/uploads/", headers | EMPTY)
    assert begun.status == 202
    sent = client.request("PATCH", begun.headers["location"], headers, body=data)
    assert sent.status == 202
    committed = client.request("PUT", f"{sent.headers['location']}?digest={digest}", headers | EMPTY)
    assert committed.status == 201
    return digest


def manifest(*layers: str) -> bytes:
    """Return a manifest with layers of these digests, of five bytes each."""
    document = {"schemaVersion": 2, "layers": [{"digest": digest, "size": 5} for digest in layers]}
    return json.dumps(document).encode()


def push_manifest(client: RegistryClient, reference: str, body: bytes, headers: dict[str, str]) -> Answer:
    """Push a manifest under a tag or a digest."""
    path = f"/v2/{client.repo}/manifests/{reference}"
    return client.request("PUT", path, headers | {"Content-Type": OCI_MANIFEST}, body=body)
