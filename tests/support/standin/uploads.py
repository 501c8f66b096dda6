"""Pushes into the stand-in Hub's memory: blob uploads, cross-repository mounts, manifests, deletions."""

import secrets

from aiohttp import web

from .content import BytesBody, Memory, sha256
from .reply import Reply, error


class Uploads:
    """Uploads in progress, by their id."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._open: dict[str, bytearray] = {}

    async def write(self, request: web.Request, repo: str, kind: str, name: str) -> Reply:
        """Respond to a POST, PATCH, PUT or DELETE; `name` is the reference, the digest or the upload's id."""
        if kind == "manifest":
            return await self._manifest(request, repo, name)
        if kind == "blob":
            removed = self._memory.repository(repo).blobs.pop(name, None)
            return Reply(202) if removed else error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        if request.method == "POST":
            return await self._begin(request, repo)
        if name not in self._open:
            return error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        if request.method == "DELETE":
            del self._open[name]
            return Reply(204)
        buffer = self._open[name]
        if request.method == "GET":
            return Reply(204, self._state(repo, name))
        start = request.headers.get("Content-Range", "").partition("-")[0]
        if start and int(start) != len(buffer):
            return Reply(416, self._state(repo, name))
        buffer += await request.read()
        if request.method == "PUT":
            return self._finish(repo, name, request.query.get("digest", ""))
        return Reply(202, self._state(repo, name))

    def _state(self, repo: str, upload: str) -> dict[str, str]:
        """Return the headers that say where an upload continues, and how much of it has arrived."""
        headers = {"Range": f"0-{max(len(self._open[upload]) - 1, 0)}", "Docker-Upload-UUID": upload}
        return headers | {"Location": f"/v2/{repo}/blobs/uploads/{upload}"}

    async def _begin(self, request: web.Request, repo: str) -> Reply:
        mount, source = request.query.get("mount"), request.query.get("from")
        if mount and source and (body := await self._memory.blob(source, mount)):
            self._memory.repository(repo).blobs[mount] = body
            return _created(repo, "blobs", mount)
        upload = secrets.token_hex(8)
        self._open[upload] = bytearray(await request.read())
        if digest := request.query.get("digest"):
            return self._finish(repo, upload, digest)
        return Reply(202, self._state(repo, upload))

    def _finish(self, repo: str, upload: str, digest: str) -> Reply:
        data = bytes(self._open.pop(upload))
        if sha256(data) != digest:
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self._memory.repository(repo).blobs[digest] = BytesBody(data)
        return _created(repo, "blobs", digest)

    async def _manifest(self, request: web.Request, repo: str, reference: str) -> Reply:
        held = self._memory.repository(repo)
        if request.method == "DELETE":
            digest = held.tags.pop(reference, reference)
            if ":" in reference:
                held.tags = {tag: target for tag, target in held.tags.items() if target != digest}
                held.manifests.pop(digest, None)
            return Reply(202)
        body = await request.read()
        if ":" in reference and reference != sha256(body):
            return error(400, "DIGEST_INVALID", "manifest does not match its digest")
        digest = self._memory.put_manifest(repo, reference, body, request.headers.get("Content-Type", ""))
        return _created(repo, "manifests", digest)


def _created(repo: str, what: str, digest: str) -> Reply:
    return Reply(201, {"Location": f"/v2/{repo}/{what}/{digest}", "Docker-Content-Digest": digest})
