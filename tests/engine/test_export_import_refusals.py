"""Exports and imports that are refused, and imports into a full store."""

import os
from pathlib import Path

import pytest
from hubcache.cli.errors import REFUSED, USAGE
from hubcache.oci.digest import Digest
from hubcache.serve.messages import Listener
from support.engine import Cache, running
from support.exports import command, export_fixtures, stored, succeeds
from support.layouts import LayoutFiles, digest_of
from support.standin import Hub, Image, random_bytes
from support.stores import MIB
from support.users import SECRET, bearer, pull, settled

offline, image = export_fixtures()


async def refused(cache: Cache, *arguments: str) -> str:
    """Run a command that is refused; return its message, which is one line."""
    result = await command(cache, *arguments)
    assert result.exit_code in (1, REFUSED), result.output
    (line,) = result.stderr.strip().splitlines()
    assert result.stdout == ""
    return line


async def test_private_image_is_not_exported(hub: Hub, tmp_path: Path) -> None:
    secret = hub.image("alice/secret", "1", [b"secret"])
    hub.private("alice/secret", {"alice": "alice's"})
    async with running(hub, tmp_path / "store", authorize=True) as cache:
        await pull(cache, secret, authorization=bearer(hub, "alice", "alice/secret"))
        assert cache.engine.store.has(Digest(secret.digest))
        assert "is private" in await refused(cache, "export", "alice/secret:1", "-o", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


async def test_incomplete_image_is_not_exported(cache: Cache, image: Image, tmp_path: Path) -> None:
    await cache.get(Listener.PROXY, "/v2/library/app/manifests/1")
    message = await refused(cache, "export", "app:1", "-o", str(tmp_path / "out"))
    assert "app:1 is not completely stored: 3 of its parts are missing" in message
    assert "app:2 is not stored" in await refused(cache, "export", "app:2", "-o", str(tmp_path / "out"))


async def test_damaged_blob_is_not_exported(cache: Cache, image: Image, tmp_path: Path) -> None:
    await pull(cache, image)
    await settled(cache)
    path = cache.engine.store.blob_path(Digest(image.layers[0]))
    assert path is not None
    state = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\0damage")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert "is not stored" in await refused(cache, "export", "app:1", "-o", str(tmp_path / "out.tar"))
    assert not (tmp_path / "out.tar").exists()
    assert not cache.engine.store.has(Digest(image.layers[0])), "it is in the quarantine"


async def test_layout_with_a_wrong_blob_records_nothing(offline: Cache, tmp_path: Path) -> None:
    files = LayoutFiles()
    files.entry(files.manifest(b"right", b"other"))
    files.files[f"blobs/sha256/{digest_of(b'right').partition(':')[2]}"] = b"wrong"
    message = await refused(offline, "import", str(files.write(tmp_path / "a.tar")))
    assert f"the content does not match its digest {digest_of(b'right')}" in message
    assert (await offline.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[0] == 503
    assert Digest(digest_of(b"right")) not in stored(offline)


async def test_malformed_layout_stores_nothing(offline: Cache, tmp_path: Path) -> None:
    files = LayoutFiles()
    files.entry(files.manifest(b"layer"))
    files.entry(files.manifest(b"other"), "Not A Name/x")
    assert "is not the name of an image" in await refused(offline, "import", str(files.write(tmp_path / "a.tar")))
    assert not stored(offline)


async def test_image_of_a_registry_that_is_not_served_is_refused(offline: Cache, tmp_path: Path) -> None:
    files = LayoutFiles()
    files.entry(files.manifest(b"layer"), "ghcr.io/owner/name:1")
    message = await refused(offline, "import", str(files.write(tmp_path / "a.tar")))
    assert message == "hubcache: this cache does not serve ghcr.io; add it to hubcache_registries"


async def test_import_into_a_repository_with_private_content_is_refused(
    cache_with_secret: Cache, hub: Hub, secret: Image, tmp_path: Path
) -> None:
    """It would make the private content of the same repository public."""
    files = LayoutFiles()
    files.entry(files.manifest(b"layer"), f"{SECRET}:2")
    path = str(files.write(tmp_path / "a.tar"))
    message = await refused(cache_with_secret, "import", path)
    assert f"the store has private content of {SECRET}, which everybody could read" in message
    for reference in ("1", "2", secret.digest):
        status, _ = await cache_with_secret.get(Listener.PROXY, f"/v2/{SECRET}/manifests/{reference}")
        assert status == 401
    await succeeds(cache_with_secret, "purge", f"{SECRET}:1")
    await succeeds(cache_with_secret, "import", path)
    cache_with_secret.apply(tag_ttl=600.0)
    assert (await cache_with_secret.get(Listener.PROXY, f"/v2/{SECRET}/manifests/2"))[0] == 200


async def test_private_image_itself_can_be_imported(
    cache_with_secret: Cache, hub: Hub, secret: Image, tmp_path: Path
) -> None:
    """The operator has its bytes, and vouches for them."""
    files, own = LayoutFiles(), bearer(hub, "alice", SECRET)
    files.blob(secret.manifest)
    for digest in secret.blobs:
        path = f"/v2/{SECRET}/blobs/{digest}"
        files.blob((await cache_with_secret.get(Listener.PROXY, path, authorization=own))[1])
    manifest = {"mediaType": secret.media_type, "digest": secret.digest, "size": len(secret.manifest)}
    files.entry(manifest, f"{SECRET}:1")
    await succeeds(cache_with_secret, "import", str(files.write(tmp_path / "a.tar")))
    cache_with_secret.apply(tag_ttl=600.0)
    assert (await cache_with_secret.get(Listener.PROXY, f"/v2/{SECRET}/manifests/1"))[1] == secret.manifest


@pytest.mark.parametrize("names", [("app:1", "app:2"), (None, None)])
async def test_name_for_a_layout_of_several_images_is_refused(
    offline: Cache, names: tuple[str | None, ...], tmp_path: Path
) -> None:
    files = LayoutFiles()
    for number, name in enumerate(names):
        files.entry(files.manifest(bytes([number])), name)
    path = str(files.write(tmp_path / "a.tar"))
    assert "--as cannot name them" in await refused(offline, "import", path, "--as", "app:3")


async def test_wrong_usage(offline: Cache, tmp_path: Path) -> None:
    for arguments, message in (
        (("import", "a", "b", "--as", "app:1"), "one layout only"),
        (("import", "a", "--as", "Not A Name"), "is not the name of an image"),
        (("export", "app:1", "-o", "-", "--json"), "exclude each other"),
    ):
        result = await command(offline, *arguments)
        assert (result.exit_code, message in result.stderr) == (USAGE, True), result.stderr


async def test_import_that_does_not_fit_removes_nothing(hub: Hub, tmp_path: Path) -> None:
    popular = hub.image("library/popular", "1", [random_bytes(2 * MIB, "p")])
    files = LayoutFiles()
    files.entry(files.manifest(*(random_bytes(3 * MIB, str(n)) for n in range(3))))
    async with running(hub, tmp_path / "store", size=8 * MIB) as small:
        await pull(small, popular)
        before = stored(small)
        assert "the content needs" in await refused(small, "import", str(files.write(tmp_path / "a.tar")))
        assert stored(small) == before
        assert not small.engine.store.usage.held


async def test_import_makes_space_in_a_full_store(hub: Hub, tmp_path: Path) -> None:
    popular = hub.image("library/popular", "1", [random_bytes(4 * MIB, "p")])
    files = LayoutFiles()
    files.entry(files.manifest(random_bytes(3 * MIB, "a"), random_bytes(2 * MIB, "b")))
    async with running(hub, tmp_path / "store", size=8 * MIB) as small:
        await pull(small, popular)
        for _ in range(20):
            small.engine.store.popularity.count_request(Digest(popular.layers[0]))
        await succeeds(small, "import", str(files.write(tmp_path / "a.tar")))
        assert (await small.get(Listener.MIRROR, "/v2/library/app/manifests/1"))[0] == 200
        assert not small.engine.store.has(Digest(popular.layers[0]))
