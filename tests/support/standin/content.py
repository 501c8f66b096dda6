"""Content of the stand-in Hub in memory, and the bodies of its responses."""

import functools
import hashlib
import json
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import media

MIB = 1024 * 1024


def sha256(data: bytes) -> str:
    """Return the digest of `data` as text, `sha256:…`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def random_bytes(size: int, seed: int | str = 0) -> bytes:
    """Return `size` bytes that do not compress and are the same in every run with the same `seed`."""
    return random.Random(seed).randbytes(size)


class Body(Protocol):
    """The bytes of a response, which need not be in memory."""

    @property
    def size(self) -> int: ...

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True)
class BytesBody:
    """A body in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        for at in range(start, stop, MIB // 4):
            yield self.data[at : min(at + MIB // 4, stop)]


@functools.lru_cache(maxsize=64)
def _pattern(seed: int | str) -> bytes:
    return random_bytes(MIB, seed)


@functools.lru_cache(maxsize=64)
def _synthetic_digest(size: int, seed: int | str) -> str:
    pattern, running = _pattern(seed), hashlib.sha256()
    for index in range(0, size, MIB):
        running.update((index.to_bytes(8, "big") + pattern[8:])[: size - index])
    return "sha256:" + running.hexdigest()


@dataclass(frozen=True)
class Synthetic:
    """A large body that is generated: copies of a 1 MiB pattern, each of which begins with its own offset."""

    size: int
    seed: int | str = 0

    @property
    def digest(self) -> str:
        return _synthetic_digest(self.size, self.seed)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to before `stop`, for comparison in tests."""
        pattern, parts, at = _pattern(self.seed), [], start
        while at < stop:
            index, offset = at - at % MIB, at % MIB
            end = min(stop, index + MIB, self.size)
            parts.append((index.to_bytes(8, "big") + pattern[8:])[offset : end - index])
            at = end
        return b"".join(parts)

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        at = start
        while at < stop:
            end = min(stop, at - at % MIB + MIB)
            yield self.read(at, end)
            at = end


@dataclass(frozen=True)
class Manifest:
    """A stored manifest: its bytes and media type."""

    body: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return sha256(self.body)


@dataclass(frozen=True)
class Image:
    """An image or image index in the Hub, with everything that tests compare."""

    repo: str
    tag: str | None
    manifest: bytes
    media_type: str
    config: str = ""
    layers: tuple[str, ...] = ()
    platform: str = ""
    images: dict[str, "Image"] = field(default_factory=dict)
    attestations: dict[str, "Image"] = field(default_factory=dict)
    """Attestations of an image index, by the platform that they describe."""

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def blobs(self) -> tuple[str, ...]:
        """Digests of config and layers, for all platforms of an image index."""
        own = (self.config, *self.layers) if self.config else ()
        return own + tuple(digest for image in self.images.values() for digest in image.blobs)


@dataclass
class Repository:
    """The content of one repository; a blob is visible only in repositories that it was put into."""

    blobs: dict[str, Body] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Memory:
    """Repositories in memory; all methods may be called while the server runs."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}

    def repository(self, repo: str) -> Repository:
        return self.repositories.setdefault(repo, Repository())

    async def has(self, repo: str) -> bool:
        return repo in self.repositories

    async def manifest(self, repo: str, reference: str) -> Manifest | None:
        found = self.repositories.get(repo, Repository())
        return found.manifests.get(found.tags.get(reference, reference))

    async def blob(self, repo: str, digest: str) -> Body | None:
        return self.repositories.get(repo, Repository()).blobs.get(digest)

    async def tags(self, repo: str) -> list[str]:
        return sorted(self.repositories.get(repo, Repository()).tags)

    async def referrers(self, repo: str, digest: str) -> list[dict[str, Any]]:
        return [
            _descriptor(manifest.body, manifest.media_type) | {"artifactType": _artifact_type(_object(manifest.body))}
            for manifest in self.repositories.get(repo, Repository()).manifests.values()
            if subject_of(manifest.body) == digest
        ]

    def put_manifest(self, repo: str, reference: str | None, body: bytes, media_type: str) -> str:
        """Store `body`, and set the tag `reference` to it unless that is a digest; returns the digest."""
        stored = Manifest(body, media_type)
        self.repository(repo).manifests[stored.digest] = stored
        if reference is not None and ":" not in reference:
            self.repository(repo).tags[reference] = stored.digest
        return stored.digest

    def put_blob(self, repo: str, data: bytes | Synthetic) -> str:
        digest = data.digest if isinstance(data, Synthetic) else sha256(data)
        self.repository(repo).blobs[digest] = data if isinstance(data, Synthetic) else BytesBody(data)
        return digest

    def image(
        self,
        repo: str,
        tag: str | None,
        layers: Sequence[bytes | Synthetic],
        *,
        platform: str = "linux/amd64",
        annotations: Mapping[str, str] | None = None,
        docker: bool = False,
        subject: Image | None = None,
        artifact_type: str = "",
        config: bytes | None = None,
        config_type: str = "",
        layer_type: str = "",
    ) -> Image:
        """Put an image (OCI, or Docker schema 2) with these layers; `subject` makes it a referrer of another image."""
        digests = [self.put_blob(repo, layer) for layer in layers]
        os, _, arch = platform.partition("/")
        if config is None:
            rootfs = {"type": "layers", "diff_ids": digests}
            config = _encode({"architecture": arch.partition("/")[0], "os": os, "config": {}, "rootfs": rootfs})
        config_type = config_type or (media.DOCKER_CONFIG if docker else media.OCI_CONFIG)
        layer_type = layer_type or (media.DOCKER_LAYER if docker else media.OCI_LAYER)
        kind = media.DOCKER_MANIFEST if docker else media.OCI_MANIFEST
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": _descriptor(config, config_type),
            "layers": [
                {"mediaType": layer_type, "size": _size(layer), "digest": digest}
                for layer, digest in zip(layers, digests, strict=True)
            ],
        }
        if artifact_type:
            document["artifactType"] = artifact_type
        if subject is not None:
            document["subject"] = _descriptor(subject.manifest, subject.media_type)
        if annotations:
            document["annotations"] = dict(annotations)
        body = _encode(document)
        self.put_manifest(repo, tag, body, kind)
        return Image(repo, tag, body, kind, self.put_blob(repo, config), tuple(digests), platform)

    def index(
        self, repo: str, tag: str | None, images: Mapping[str, Image], *, docker: bool = False, attested: bool = False
    ) -> Image:
        """Put an image index of `images` by platform (`linux/arm64` or `linux/arm/v7`); with `attested` it has an
        attestation for each, as BuildKit creates them."""
        kind = media.DOCKER_LIST if docker else media.OCI_INDEX
        entries = []
        for platform, image in images.items():
            os, arch, *variant = platform.split("/")
            described = {"os": os, "architecture": arch} | ({"variant": variant[0]} if variant else {})
            entries.append(_descriptor(image.manifest, image.media_type) | {"platform": described})
        attestations = {name: self._attest(repo, image) for name, image in images.items()} if attested else {}
        for platform, attestation in attestations.items():
            entries.append(
                _descriptor(attestation.manifest, attestation.media_type)
                | {
                    "annotations": {
                        "vnd.docker.reference.type": "attestation-manifest",
                        "vnd.docker.reference.digest": images[platform].digest,
                    },
                    "platform": {"os": "unknown", "architecture": "unknown"},
                }
            )
        body = _encode({"schemaVersion": 2, "mediaType": kind, "manifests": entries})
        self.put_manifest(repo, tag, body, kind)
        return Image(repo, tag, body, kind, images=dict(images), attestations=attestations)

    def _attest(self, repo: str, image: Image) -> Image:
        statement = _encode({"_type": "https://in-toto.io/Statement/v0.1", "subject": [{"digest": image.digest}]})
        kind = "application/vnd.in-toto+json"
        return self.image(repo, None, [statement], platform="unknown/unknown", layer_type=kind)


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(
        document, indent=3
    ).encode()  # indented like Docker Hub's, so that serialising it again changes the digest


def _size(blob: bytes | Synthetic) -> int:
    return blob.size if isinstance(blob, Synthetic) else len(blob)


def _descriptor(body: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "size": len(body), "digest": sha256(body)}


def subject_of(body: bytes) -> str | None:
    """Return the digest of a manifest's `subject`, None without one."""
    subject = _object(body).get("subject", {}).get("digest")
    return None if subject is None else str(subject)


def _artifact_type(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("artifactType") or manifest.get("config", {}).get("mediaType", ""))


def _object(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def platform_digest(index: Manifest, os: str = "linux", arch: str = "amd64") -> str | None:
    """Return the digest that an image index has for a platform, None without one."""
    entries: Iterable[dict[str, Any]] = _object(index.body).get("manifests", [])
    for entry in entries:
        described = entry.get("platform", {})
        if described.get("os") == os and described.get("architecture") == arch:
            return str(entry["digest"])
    return None
