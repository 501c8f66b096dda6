"""The requests of a real Docker Engine 29 in a pull of an attested image, in its order and with its headers.

`recorded/engine-29.jsonl` was recorded in front of a plain registry: without tokens, with names for digests.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from support.standin import Hub, Image, random_bytes

RECORDED = Path(__file__).parent / "recorded" / "engine-29.jsonl"
REPO = "library/app"
ACTIONS = ("pull", "pull again, nothing changed", "pull after rmi", "pull by digest")
MAY_BE_MISSING = ("/referrers/", "/manifests/sha256-")
"""Parts of the paths for which an engine accepts 404."""


class RecordedRequest(NamedTuple):
    """A request; `path` includes the query, which names the registry as at a mirror."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def expected(self) -> int:
        """The status with which the pull continues when the attestation has no referrers."""
        return 404 if any(part in self.path for part in MAY_BE_MISSING) else 200

    @property
    def at_registry(self) -> str:
        """The path of the request to the registry itself."""
        return self.path.partition("?")[0]


def attested(hub: Hub, repo: str = REPO) -> Image:
    """Put an image of four layers with an attestation, like the recorded one, into the Hub."""
    layers = [random_bytes(20_000, f"{repo} {number}") for number in range(4)]
    image = hub.image(repo, None, layers)
    return hub.index(repo, "latest", {"linux/amd64": image}, attested=True)


def recorded_requests(action: str, index: Image) -> Iterator[RecordedRequest]:
    """Yield the engine's requests when no token is required and blobs are not redirected."""
    image, attestation = index.images["linux/amd64"], index.attestations["linux/amd64"]
    names = {f"<layer {number}>": digest for number, digest in enumerate(image.layers, 1)} | {
        "<index>": index.digest,
        "<image>": image.digest,
        "<config>": image.config,
        "<attestation> as tag sha256-hex": attestation.digest.replace(":", "-"),
        "<attestation>": attestation.digest,
        "<attestation config>": attestation.config,
        "<attestation layer>": attestation.layers[0],
        f"/v2/{REPO}/": f"/v2/{index.repo}/",
    }
    last = None
    for line in RECORDED.read_text().splitlines():
        recorded = json.loads(line)
        path = recorded["path"]
        if recorded["action"] != action or not path.startswith("/v2/") or (recorded["method"], path) == last:
            continue  # a request for a token or to the CDN, or the same request again after a challenge
        last = recorded["method"], path
        for name, digest in names.items():
            path = path.replace(name, digest)
        assert "<" not in path, path
        headers = {name: value for name, value in recorded["headers"].items() if name != "authorization"}
        yield RecordedRequest(recorded["method"], path, headers)
