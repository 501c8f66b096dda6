"""What the push and delete parts of the distribution spec's conformance suite ask of a registry, with a look at the
content before and after each step; and what came back, to be compared between two ways to one registry."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from support.http_client import Answer
from support.standin import random_bytes
from support.standin.media import OCI_MANIFEST

OCTETS = {"Content-Type": "application/octet-stream"}
COMPARED = ("location", "docker-content-digest", "range", "oci-subject", "content-range", "accept-ranges")
"""Headers that a client of a push goes by; others may differ (a cache adds its own)."""

type Ask = Callable[[str, str, Mapping[str, str], bytes], Answer]
"""Method, path, headers and body of one request."""

type Line = tuple[str, int, dict[str, str]]
"""What was asked, the status, and the compared headers."""


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass
class Conformance:
    """One run in a repository of its own; `other` is a second one, to mount from. What came back is in `lines`."""

    ask: Ask
    repo: str
    other: str
    lines: list[Line] = field(default_factory=list)

    def run(self) -> list[Line]:
        """All of it."""
        self._look("blob", digest_of(b"never pushed"))
        self._monolithic()
        self._pieces()
        self._mounts()
        self._manifests()
        self._deletions()
        return self.lines

    # -- requests -----------------------------------------------------------------------------------------------------

    def _do(
        self, what: str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        headers = dict(headers or {})
        if method in ("POST", "PUT", "PATCH", "DELETE") and not body:
            headers["Content-Length"] = "0"
        answer = self.ask(method, path, headers, body)
        told = {name: self._plain(name, answer.headers[name]) for name in COMPARED if name in answer.headers}
        if method in ("GET", "HEAD") and answer.status == 200 and "/manifests/" in path:
            told["content-type"] = answer.headers["content-type"]
        if method == "GET" and answer.status == 200:
            told["content"] = self._plain("content", answer.body.decode("latin-1"))
        self.lines.append((f"{what}: {method}", answer.status, told))
        return answer

    def _plain(self, name: str, text: str) -> str:
        """Without what differs between two runs: the repository, the id and the state of an upload."""
        text = text.replace(self.repo, "REPO").replace(self.other, "OTHER")
        if name == "location":
            parts = urlsplit(text)
            text = re.sub(r"/uploads/[^/]+$", "/uploads/ID", parts.path)
        return text

    def _look(self, kind: str, reference: str) -> None:
        """Is it there? A client that pushes asks by HEAD first; whoever pulls by GET."""
        for method in ("HEAD", "GET"):
            accept = {"Accept": OCI_MANIFEST} if kind == "manifest" else {}
            self._do(f"look at {kind}", method, f"/v2/{self.repo}/{kind}s/{reference}", accept)

    def _begin(self, repo: str = "") -> str:
        begun = self._do("begin", "POST", f"/v2/{repo or self.repo}/blobs/uploads/")
        return begun.headers["location"]

    def _finish(self, place: str, digest: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        separator = "&" if "?" in place else "?"
        return self._do("finish", "PUT", f"{place}{separator}digest={digest}", OCTETS | dict(headers or {}), body)

    def _push(self, data: bytes, repo: str = "") -> str:
        self._finish(self._begin(repo), digest_of(data), data)
        return digest_of(data)

    # -- blobs --------------------------------------------------------------------------------------------------------

    def _fresh(self, note: str, size: int = 3000) -> bytes:
        """Content that no other run has, and that was asked for in vain a moment ago."""
        data = random_bytes(size, note)
        self._look("blob", digest_of(data))
        return data

    def _monolithic(self) -> None:
        data = self._fresh("post and put")
        self._push(data)
        self._look("blob", digest_of(data))
        data = self._fresh("post only")
        digest = digest_of(data)
        once = self._do("push at once", "POST", f"/v2/{self.repo}/blobs/uploads/?digest={digest}", OCTETS, data)
        if once.status == 202:
            self._finish(once.headers["location"], digest, data)
        self._look("blob", digest)
        wrong = self._fresh("not what was promised")
        self._finish(self._begin(), digest_of(wrong), b"something else")
        self._look("blob", digest_of(wrong))

    def _pieces(self) -> None:
        data = self._fresh("stream")
        streamed = self._do("stream", "PATCH", self._begin(), OCTETS, data)
        self._finish(streamed.headers["location"], digest_of(data))
        self._look("blob", digest_of(data))
        data = self._fresh("chunks")
        self._chunks(data)
        self._look("blob", digest_of(data))
        place = self._begin()
        self._do("cancel", "DELETE", place)
        self._do("cancelled", "GET", place)

    def _chunks(self, data: bytes) -> None:
        """Three chunks; before each of them one that is out of order, after which the state is asked for."""
        size, place = len(data) // 3 + 1, self._begin()
        for start, end in self._parts(len(data), size):
            astray = 0 if end == len(data) else end
            piece = data[astray : astray + size]
            span = {"Content-Range": f"{astray}-{astray + len(piece) - 1}"}
            self._do("chunk out of order", "PATCH", place, OCTETS | span, piece)
            state = self._do("state of upload", "GET", place)
            place = state.headers.get("location", place)
            span = {"Content-Range": f"{start}-{end - 1}"}
            if end == len(data):
                self._finish(place, digest_of(data), data[start:end], span)
            else:
                sent = self._do("chunk", "PATCH", place, OCTETS | span, data[start:end])
                place = sent.headers.get("location", place)

    @staticmethod
    def _parts(total: int, size: int) -> Iterator[tuple[int, int]]:
        for start in range(0, total, size):
            yield start, min(start + size, total)

    def _mounts(self) -> None:
        data = self._fresh("mounted")
        digest = self._push(data, self.other)
        self._do("mount", "POST", f"/v2/{self.repo}/blobs/uploads/?mount={digest}&from={self.other}")
        self._look("blob", digest)
        absent = digest_of(b"nowhere")
        place = self._do("mount nothing", "POST", f"/v2/{self.repo}/blobs/uploads/?mount={absent}&from={self.other}")
        self._look("blob", absent)
        self._do("cancel", "DELETE", place.headers["location"])

    # -- manifests ----------------------------------------------------------------------------------------------------

    def _manifest(self, note: str, subject: bytes = b"") -> bytes:
        config, layer = b"{}", random_bytes(3000, "post and put")
        document: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": digest_of(config)},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": len(layer), "digest": digest_of(layer)}
            ],
            "annotations": {"note": note},
        }
        if subject:
            document["subject"] = {"mediaType": OCI_MANIFEST, "size": len(subject), "digest": digest_of(subject)}
        return json.dumps(document).encode()

    def _put(self, reference: str, body: bytes) -> None:
        for known in dict.fromkeys((reference, digest_of(body))):
            self._look("manifest", known)
        path = f"/v2/{self.repo}/manifests/{reference}"
        self._do("push manifest", "PUT", path, {"Content-Type": OCI_MANIFEST}, body)
        for known in dict.fromkeys((reference, digest_of(body))):
            self._look("manifest", known)

    def _manifests(self) -> None:
        self._push(b"{}")
        first, moved, plain = (self._manifest(note) for note in ("first", "moved", "by digest"))
        self._put("latest", first)
        self._put("latest", moved)
        self._put(digest_of(plain), plain)
        self._put(digest_of(self._manifest("refers", plain)), self._manifest("refers", plain))
        self._put(digest_of(b"wrong"), plain)
        self._do("tags", "GET", f"/v2/{self.repo}/tags/list")
        self._put("second", first)

    def _deletions(self) -> None:
        base = f"/v2/{self.repo}"
        moved, first = self._manifest("moved"), self._manifest("first")
        self._do("delete tag", "DELETE", f"{base}/manifests/latest")
        self._look("manifest", "latest")
        self._look("manifest", digest_of(moved))
        self._do("delete manifest", "DELETE", f"{base}/manifests/{digest_of(first)}")
        for reference in ("second", digest_of(first)):
            self._look("manifest", reference)
        layer = random_bytes(3000, "post and put")
        for _ in range(2):
            self._do("delete blob", "DELETE", f"{base}/blobs/{digest_of(layer)}")
            self._look("blob", digest_of(layer))
        self._push(layer)
        self._look("blob", digest_of(layer))
        self._put("latest", first)
