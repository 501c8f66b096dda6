"""Pushes as docker sends them, by alice."""

import base64
import hashlib
import json

from support.http_client import Answer
from support.program import RegistryClient
from support.standin.media import OCI_MANIFEST


def credentials(client: RegistryClient, actions: str = "pull,push,delete") -> dict[str, str]:
    basic = "Basic " + base64.b64encode(b"alice:secret").decode()
    return {"Authorization": f"Bearer {client.token(f'repository:{client.repo}:{actions}', basic)}"}


def push_blob(client: RegistryClient, data: bytes, headers: dict[str, str]) -> str:
    """As docker pushes: begin, send, commit at the addresses that the registry names."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    begun = client.request("POST", f"/v2/{client.repo}/blobs/uploads/", headers | {"Content-Length": "0"})
    assert begun.status == 202
    sent = client.request("PATCH", begun.headers["location"], headers, body=data)
    assert sent.status == 202
    committed = client.request("PUT", f"{sent.headers['location']}?digest={digest}", headers | {"Content-Length": "0"})
    assert committed.status == 201
    return digest


def manifest(*layers: str) -> bytes:
    document = {"schemaVersion": 2, "layers": [{"digest": digest, "size": 5} for digest in layers]}
    return json.dumps(document).encode()


def push_manifest(client: RegistryClient, reference: str, body: bytes, headers: dict[str, str]) -> Answer:
    path = f"/v2/{client.repo}/manifests/{reference}"
    return client.request("PUT", path, headers | {"Content-Type": OCI_MANIFEST}, body=body)
