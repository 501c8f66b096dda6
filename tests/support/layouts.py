"""OCI image layouts that a test composes file by file."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubcache.oci.media import OCI_INDEX, OCI_MANIFEST

NAME = "org.opencontainers.image.ref.name"
CONTAINERD = "io.containerd.image.name"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class LayoutFiles:
    """The files of a layout by name; without changes it is a layout without images."""

    files: dict[str, bytes] = field(default_factory=lambda: {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'})
    entries: list[dict[str, Any]] = field(default_factory=list)

    def blob(self, data: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
        """Add content; return its descriptor."""
        digest = digest_of(data)
        self.files[f"blobs/sha256/{digest.partition(':')[2]}"] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def manifest(self, *layers: bytes, **fields: Any) -> dict[str, Any]:
        """Add an image manifest with these layers; return its descriptor."""
        document = {
            **{"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": self.blob(b"{}")},
            **{"layers": [self.blob(layer) for layer in layers], **fields},
        }
        return self.blob(json.dumps(document).encode(), OCI_MANIFEST)

    def index(self, *manifests: Mapping[str, Any]) -> dict[str, Any]:
        """Add an image index of these manifests; return its descriptor."""
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
        return self.blob(json.dumps(document).encode(), OCI_INDEX)

    def entry(self, descriptor: Mapping[str, Any], name: str | None = "app:1", annotation: str = NAME) -> None:
        """Add an entry to `index.json`."""
        named = {"annotations": {annotation: name}} if name is not None else {}
        self.entries.append({**descriptor, **named})

    def complete(self) -> dict[str, bytes]:
        """Return all files."""
        index = {"schemaVersion": 2, "manifests": self.entries}
        return {"index.json": json.dumps(index).encode()} | self.files

    def write(self, path: Path) -> Path:
        """Write the layout, as an archive if the name ends with `.tar`."""
        if path.suffix == ".tar":
            path.write_bytes(tar_of(self.complete().items()))
            return path
        for name, data in self.complete().items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path


def tar_of(files: Iterable[tuple[str, bytes] | tarfile.TarInfo], kind: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive of these files, and of entries without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for each in files:
            if isinstance(each, tarfile.TarInfo):
                archive.addfile(each)
            else:
                entry = tarfile.TarInfo(each[0])
                entry.size = len(each[1])
                archive.addfile(entry, io.BytesIO(each[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return an entry that is no file: a link, a device, a pipe."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry
