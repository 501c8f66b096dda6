"""Makes images of random bytes, in files that nginx can serve as a registry."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_PIECE = 1 << 20
_NOISE = os.urandom(_PIECE)


@dataclass(frozen=True, slots=True)
class Content:
    """An image, or a single blob if `tag` is empty. `paths` are the URL paths that a pull requests, in order; `size` is
    in bytes."""

    name: str
    tag: str
    paths: tuple[str, ...]
    size: int


class Images:
    """Makes content below `root`. A repository name that starts with the name of a slow link has its blobs served over
    that link (see `upstream.LINKS`)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, name: str, size: int, *, sparse: bool = False) -> Content:
        """Make a blob. If `sparse`, all bytes after the first MiB are zero and take no disk space."""
        sha256 = hashlib.sha256()
        partial = self._directory(name, "blobs") / "partial"
        with partial.open("wb") as file:
            for offset in range(0, size, _PIECE):
                hole = sparse and offset > 0
                piece = bytes(_PIECE) if hole else os.urandom(16) + _NOISE[16:]
                sha256.update(piece[: size - offset])
                if not hole:
                    file.write(piece[: size - offset])
            file.truncate(size)
        digest = f"sha256:{sha256.hexdigest()}"
        partial.rename(partial.with_name(digest))
        return Content(name, "", (f"/v2/{name}/blobs/{digest}",), size)

    def image(self, name: str, layers: list[int]) -> Content:
        """Make an image with layers of these sizes in bytes. Its tag contains its digest, from which nginx derives the
        header `Docker-Content-Digest`."""
        blobs = [self.blob(name, size) for size in layers]
        digests = [_digest(blob.paths[0]) for blob in blobs]
        root = {"type": "layers", "diff_ids": digests}
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": root}).encode()
        config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
        (self._directory(name, "blobs") / config_digest).write_bytes(config)
        descriptors = zip(digests, layers, strict=True)
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": _CONFIG_TYPE, "size": len(config), "digest": config_digest},
            "layers": [{"mediaType": _LAYER_TYPE, "size": size, "digest": digest} for digest, size in descriptors],
        }
        manifest = json.dumps(document).encode()
        hexadecimal = hashlib.sha256(manifest).hexdigest()
        for reference in (f"sha256:{hexadecimal}", f"t-{hexadecimal}"):
            (self._directory(name, "manifests") / reference).write_bytes(manifest)
        paths = [f"/v2/{name}/manifests/sha256:{hexadecimal}", f"/v2/{name}/blobs/{config_digest}"]
        paths += [blob.paths[0] for blob in blobs]
        return Content(name, f"t-{hexadecimal}", tuple(paths), len(manifest) + len(config) + sum(layers))

    def _directory(self, name: str, kind: str) -> Path:
        directory = self.root / "v2" / name / kind
        directory.mkdir(parents=True, exist_ok=True)
        return directory


def _digest(path: str) -> str:
    return path.rpartition("/")[2]
