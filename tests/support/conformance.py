"""The push and delete requests of the distribution spec's conformance suite, recorded for a comparison.

The content is requested before and after each step. Two runs, with and without the cache in between, must record the
same answers.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from support.http_client import Answer
from support.standin import random_bytes
from support.standin.content import sha256
from support.standin.media import OCI_MANIFEST

OCTETS = {"Content-Type": "application/octet-stream"}
COMPARED = ("location", "docker-content-digest", "range", "oci-subject", "content-range", "accept-ranges")
"""Headers that a pushing client uses. Others may differ: a cache adds its own."""

type Ask = Callable[[str, str, Mapping[str, str], bytes], Answer]
"""Sends a request (method, path, headers, body) and returns its answer."""

type Step = tuple[str, int, dict[str, str]]
"""What was requested, the status, and the compared headers and content."""


@dataclass
class Conformance:
    """One run in a new repository; blobs are mounted from the repository `other`."""

    ask: Ask
    repo: str
    other: str
    steps: list[Step] = field(default_factory=list)

    def run(self) -> list[Step]:
        """Send all requests; returns the recorded answers."""
        self._read("blob", sha256(b"never pushed"))
        self._push_monolithic()
        self._push_chunked()
        self._mount()
        self._push_manifests()
        self._delete()
        return self.steps

    # -- requests -----------------------------------------------------------------------------------------------------

    def _send(
        self, what: str, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        headers = dict(headers or {})
        if method in ("POST", "PUT", "PATCH", "DELETE") and not body:
            headers["Content-Length"] = "0"
        answer = self.ask(method, path, headers, body)
        seen = {name: self._comparable(name, answer.headers[name]) for name in COMPARED if name in answer.headers}
        if method in ("GET", "HEAD") and answer.status == 200 and "/manifests/" in path:
            seen["content-type"] = answer.headers["content-type"]
        if method == "GET" and answer.status == 200:
            seen["content"] = self._comparable("content", answer.body.decode("latin-1"))
        self.steps.append((f"{what}: {method}", answer.status, seen))
        return answer

    def _comparable(self, name: str, text: str) -> str:
        """Remove the parts that differ between two runs: the repository, and the id and state of an upload."""
        text = text.replace(self.repo, "REPO").replace(self.other, "OTHER")
        if name == "location":
            text = re.sub(r"/uploads/[^/]+$", "/uploads/ID", urlsplit(text).path)
        return text

    def _read(self, kind: str, reference: str) -> None:
        """Request content by HEAD, as pushing clients do first, and by GET, as pulling clients do."""
        for method in ("HEAD", "GET"):
            accept = {"Accept": OCI_MANIFEST} if kind == "manifest" else {}
            self._send(f"read {kind}", method, f"/v2/{self.repo}/{kind}s/{reference}", accept)

    def _begin(self, repo: str = "") -> str:
        begun = self._send("begin", "POST", f"/v2/{repo or self.repo}/blobs/uploads/")
        return begun.headers["location"]

    def _finish(self, location: str, digest: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        separator = "&" if "?" in location else "?"
        self._send("finish", "PUT", f"{location}{separator}digest={digest}", OCTETS | dict(headers or {}), body)

    def _push(self, data: bytes, repo: str = "") -> str:
        self._finish(self._begin(repo), sha256(data), data)
        return sha256(data)

    # -- blobs --------------------------------------------------------------------------------------------------------

    def _new_blob(self, seed: str, size: int = 3000) -> bytes:
        """Return content that is not in the repository, after a request for it that was answered with 404."""
        data = random_bytes(size, seed)
        self._read("blob", sha256(data))
        return data

    def _push_monolithic(self) -> None:
        data = self._new_blob("post and put")
        self._push(data)
        self._read("blob", sha256(data))
        data = self._new_blob("post only")
        digest = sha256(data)
        once = self._send(
            "push in one request", "POST", f"/v2/{self.repo}/blobs/uploads/?digest={digest}", OCTETS, data
        )
        if once.status == 202:
            self._finish(once.headers["location"], digest, data)
        self._read("blob", digest)
        wrong = self._new_blob("wrong digest")
        self._finish(self._begin(), sha256(wrong), b"something else")
        self._read("blob", sha256(wrong))

    def _push_chunked(self) -> None:
        data = self._new_blob("stream")
        streamed = self._send("stream", "PATCH", self._begin(), OCTETS, data)
        self._finish(streamed.headers["location"], sha256(data))
        self._read("blob", sha256(data))
        data = self._new_blob("chunks")
        self._push_chunks(data)
        self._read("blob", sha256(data))
        location = self._begin()
        self._send("cancel", "DELETE", location)
        self._send("cancelled", "GET", location)

    def _push_chunks(self, data: bytes) -> None:
        """Push three chunks; before each of them send one out of order, and request the state of the upload."""
        size, location = len(data) // 3 + 1, self._begin()
        for start, end in self._ranges(len(data), size):
            wrong_start = 0 if end == len(data) else end
            chunk = data[wrong_start : wrong_start + size]
            content_range = {"Content-Range": f"{wrong_start}-{wrong_start + len(chunk) - 1}"}
            self._send("chunk out of order", "PATCH", location, OCTETS | content_range, chunk)
            state = self._send("state of upload", "GET", location)
            location = state.headers.get("location", location)
            content_range = {"Content-Range": f"{start}-{end - 1}"}
            if end == len(data):
                self._finish(location, sha256(data), data[start:end], content_range)
            else:
                sent = self._send("chunk", "PATCH", location, OCTETS | content_range, data[start:end])
                location = sent.headers.get("location", location)

    @staticmethod
    def _ranges(total: int, size: int) -> Iterator[tuple[int, int]]:
        for start in range(0, total, size):
            yield start, min(start + size, total)

    def _mount(self) -> None:
        data = self._new_blob("mounted")
        digest = self._push(data, self.other)
        uploads = f"/v2/{self.repo}/blobs/uploads/"
        self._send("mount", "POST", f"{uploads}?mount={digest}&from={self.other}")
        self._read("blob", digest)
        absent = sha256(b"in no repository")
        begun = self._send("mount absent blob", "POST", f"{uploads}?mount={absent}&from={self.other}")
        self._read("blob", absent)
        self._send("cancel", "DELETE", begun.headers["location"])

    # -- manifests ----------------------------------------------------------------------------------------------------

    def _manifest(self, note: str, subject: bytes = b"") -> bytes:
        config, layer = b"{}", random_bytes(3000, "post and put")
        document: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": sha256(config)},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": len(layer), "digest": sha256(layer)}
            ],
            "annotations": {"note": note},
        }
        if subject:
            document["subject"] = {"mediaType": OCI_MANIFEST, "size": len(subject), "digest": sha256(subject)}
        return json.dumps(document).encode()

    def _push_manifest(self, reference: str, body: bytes) -> None:
        references = dict.fromkeys((reference, sha256(body)))
        for known in references:
            self._read("manifest", known)
        path = f"/v2/{self.repo}/manifests/{reference}"
        self._send("push manifest", "PUT", path, {"Content-Type": OCI_MANIFEST}, body)
        for known in references:
            self._read("manifest", known)

    def _push_manifests(self) -> None:
        self._push(b"{}")
        first, moved, plain = (self._manifest(note) for note in ("first", "moved", "by digest"))
        referrer = self._manifest("refers", plain)
        self._push_manifest("latest", first)
        self._push_manifest("latest", moved)
        self._push_manifest(sha256(plain), plain)
        self._push_manifest(sha256(referrer), referrer)
        self._push_manifest(sha256(b"wrong"), plain)
        self._send("tags", "GET", f"/v2/{self.repo}/tags/list")
        self._push_manifest("second", first)

    def _delete(self) -> None:
        base = f"/v2/{self.repo}"
        moved, first = self._manifest("moved"), self._manifest("first")
        self._send("delete tag", "DELETE", f"{base}/manifests/latest")
        self._read("manifest", "latest")
        self._read("manifest", sha256(moved))
        self._send("delete manifest", "DELETE", f"{base}/manifests/{sha256(first)}")
        for reference in ("second", sha256(first)):
            self._read("manifest", reference)
        layer = random_bytes(3000, "post and put")
        for _ in range(2):
            self._send("delete blob", "DELETE", f"{base}/blobs/{sha256(layer)}")
            self._read("blob", sha256(layer))
        self._push(layer)
        self._read("blob", sha256(layer))
        self._push_manifest("latest", first)
