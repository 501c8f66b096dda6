"""Builds real layers, images and image indexes, and pushes them to a registry."""

import gzip
import http.client
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from support.standin import media
from support.standin.content import sha256


@dataclass(frozen=True)
class Layer:
    """A compressed layer."""

    data: bytes
    diff_id: str

    @property
    def digest(self) -> str:
        return sha256(self.data)


def compressed_layer(compressed: bytes) -> Layer:
    """Return the layer of a gzip-compressed tar."""
    return Layer(compressed, sha256(gzip.decompress(compressed)))


def layer(files: Mapping[str, bytes]) -> Layer:
    """Return a layer with these files. A name that ends in `*` is executable; the prefix `.wh.` removes a file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name.removesuffix("*"))
            member.size, member.mode = len(data), 0o755 if name.endswith("*") else 0o644
            archive.addfile(member, io.BytesIO(data))
    return compressed_layer(gzip.compress(buffer.getvalue(), 6, mtime=0))


@dataclass(frozen=True)
class PublishedImage:
    """An image or an image index in the registry."""

    repo: str
    tag: str
    manifest: bytes
    media_type: str
    config: str = ""
    layers: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def name(self) -> str:
        """The name for the docker command: `debian:base` or `alice/app:1`."""
        return f"{self.repo.removeprefix('library/')}:{self.tag}"

    @property
    def full_name(self) -> str:
        return f"docker.io/{self.repo}:{self.tag}"


class Publisher:
    """Pushes to the registry at `address` (`http://127.0.0.1:5001`), which needs no credentials."""

    def __init__(self, address: str) -> None:
        self._host = urlsplit(address).netloc

    def _request(
        self, method: str, path: str, body: bytes, content_type: str, expected: int
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._host, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": content_type})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != expected:
            raise OSError(f"{method} {path}: {answer.status} {text!r}")
        return answer

    def blob(self, repo: str, data: bytes) -> dict[str, Any]:
        """Push a blob; returns its descriptor without a media type."""
        binary = "application/octet-stream"
        location = self._request("POST", f"/v2/{repo}/blobs/uploads/", b"", binary, 202).headers["Location"]
        parts = urlsplit(location)
        self._request("PUT", f"{parts.path}?{parts.query}&digest={sha256(data)}", data, binary, 201)
        return {"size": len(data), "digest": sha256(data)}

    def _manifest(self, repo: str, tag: str, document: Mapping[str, Any]) -> bytes:
        body = json.dumps(document, indent=2).encode()
        self._request("PUT", f"/v2/{repo}/manifests/{tag}", body, document["mediaType"], 201)
        return body

    def image(
        self,
        repo: str,
        tag: str,
        layers: Sequence[Layer],
        *,
        arch: str = "amd64",
        docker: bool = False,
        config: Mapping[str, Any],
    ) -> PublishedImage:
        """Push an image, OCI or Docker schema 2; `config` has its Cmd, Env and so on."""
        document = {
            "architecture": arch,
            "os": "linux",
            "created": "2024-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], **config},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": "tests"} for _ in layers],
        }
        config_type = media.DOCKER_CONFIG if docker else media.OCI_CONFIG
        layer_type = media.DOCKER_LAYER if docker else media.OCI_LAYER
        manifest_type = media.DOCKER_MANIFEST if docker else media.OCI_MANIFEST
        configured = {"mediaType": config_type, **self.blob(repo, json.dumps(document).encode())}
        described = [{"mediaType": layer_type, **self.blob(repo, layer.data)} for layer in layers]
        manifest = {"schemaVersion": 2, "mediaType": manifest_type, "config": configured, "layers": described}
        body = self._manifest(repo, tag, manifest)
        digests = tuple(layer.digest for layer in layers)
        return PublishedImage(repo, tag, body, manifest_type, str(configured["digest"]), digests)

    def index(self, repo: str, tag: str, images: Mapping[str, PublishedImage]) -> PublishedImage:
        """Push an OCI image index of images in `repo`, by architecture."""
        entries = [
            {
                "mediaType": image.media_type,
                "size": len(image.manifest),
                "digest": image.digest,
                "platform": {"os": "linux", "architecture": arch},
            }
            for arch, image in images.items()
        ]
        body = self._manifest(repo, tag, {"schemaVersion": 2, "mediaType": media.OCI_INDEX, "manifests": entries})
        return PublishedImage(repo, tag, body, media.OCI_INDEX)
