"""Requests of an import to the control socket."""

from pathlib import Path
from typing import Any

import pytest
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Listener
from support.control import call
from support.engine import Cache
from support.exports import export_fixtures, stored, succeeds
from support.layouts import LayoutFiles, digest_of
from support.users import until

offline, image = export_fixtures()


async def ask(cache: Cache, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    return await call(cache.settings.directory, method, path, body)


async def test_tag_is_recorded_only_when_all_content_is_stored(offline: Cache) -> None:
    files = LayoutFiles()
    manifest = files.manifest(b"layer")
    body = {"image": "app:1", "digest": manifest["digest"], "media_type": manifest["mediaType"]}
    assert (await ask(offline, "POST", "/v1/tag", body))[0] == 409
    await offline.engine.control.commands.content.put_manifest(
        Digest(manifest["digest"]), "", files.files[f"blobs/sha256/{manifest['digest'].partition(':')[2]}"]
    )
    status, answer = await ask(offline, "POST", "/v1/tag", body)
    assert status == 409
    assert "2 of its parts are not stored" in answer["error"]
    assert (await offline.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[0] == 503


async def test_name_with_another_digest_records_nothing(offline: Cache, tmp_path: Path) -> None:
    files = LayoutFiles()
    manifest = files.manifest(b"layer")
    files.entry(manifest, "app:1")
    await succeeds(offline, "import", str(files.write(tmp_path / "a.tar")))
    name = f"other@{digest_of(b'layer')}"
    body = {"image": name, "digest": manifest["digest"], "media_type": manifest["mediaType"]}
    status, answer = await ask(offline, "POST", "/v1/tag", body)
    assert (status, "cannot be an image with the digest" in answer["error"]) == (400, True)
    assert (await offline.get(Listener.MIRROR, f"/v2/library/other/manifests/{manifest['digest']}"))[0] == 503


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/content/sha256:none", None, 400),
        ("GET", f"/v1/content/{digest_of(b'none')}", None, 404),
        ("PUT", f"/v1/content/{digest_of(b'none')}", {}, 400),
        ("PUT", f"/v1/content/{digest_of(b'none')}?media_type=x/y", {}, 400),
        ("PUT", f"/v1/content/{digest_of(b'[]')}?media_type=x/y", [], 400),
        ("PUT", f"/v1/content/{digest_of(b'{}')}?media_type=x/y%0d%0aSet-Cookie:z", {}, 400),
        ("POST", "/v1/content", {"contents": {"sha256:x": 1}}, 400),
        ("POST", "/v1/content", {"contents": {digest_of(b""): -1}}, 400),
        ("POST", "/v1/content", {"contents": []}, 400),
        ("GET", "/v1/export?name=In%20Valid", None, 400),
        ("GET", "/v1/export?name=none", None, 404),
        ("GET", "/v1/export?name=none&platforms=x", None, 400),
        ("POST", "/v1/tag", {"image": "app:1", "digest": "x", "media_type": "y"}, 400),
        ("POST", "/v1/tag", {"image": "app:1", "digest": digest_of(b""), "media_type": ""}, 400),
        ("POST", "/v1/tag", {"image": "app:1", "digest": digest_of(b""), "media_type": "x/y\r\nz"}, 400),
        ("POST", "/v1/tag", {"image": "app:1", "digest": digest_of(b""), "media_type": "x", "referrers": ["x"]}, 400),
    ],
)
async def test_malformed_request_is_refused(offline: Cache, method: str, path: str, body: Any, status: int) -> None:
    found, answer = await ask(offline, method, path, body)
    assert (found, set(answer)) == (status, {"error"})
    assert not stored(offline)


async def test_content_of_an_import_that_ends_early_may_be_evicted_later(
    offline: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubcache.control.content.HOLD_SECONDS", 0.05)
    status, answer = await ask(offline, "POST", "/v1/content", {"contents": {digest_of(b"x"): 1}})
    assert (status, answer) == (200, {"missing": [digest_of(b"x")]})
    await until(lambda: not offline.engine.store.usage.held)
