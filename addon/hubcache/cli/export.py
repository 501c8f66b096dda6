"""Writes stored images to an OCI image layout, for a machine without a network: the command `export`."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ..oci.digest import Digest
from ..oci.image_name import ImageName
from .client import ControlClient
from .errors import UsageError
from .layout_target import LayoutTarget, open_target
from .oci_layout import CONTAINERD_NAME, REF_NAME, docker_document, full_name, index_document
from .options import Directory, Images, Json, connect
from .output import Output
from .text import size as size_text
from .warm import default_platform

EXPORT_SECONDS = 600.0
"""How long the cache may take to verify a blob before it sends it."""


def export(
    images: Images,
    target: Annotated[
        str,
        typer.Option(
            *("-o", "--output"),
            metavar="DIR|FILE.tar|-",
            help="A new directory, a tar archive, or - for an archive on standard output.",
        ),
    ],
    platforms: Annotated[
        list[str],
        typer.Option(
            "--platform",
            metavar="OS/ARCH",
            help="Such as linux/arm64; may be repeated. By default all platforms that are completely stored.",
            show_default=False,
        ),
    ] = [],  # noqa: B006 - typer copies it
    directory: Directory = None,
    is_json: Json = False,
) -> None:
    """Write images, with their signatures and attestations, to an OCI image layout.

    hubcache import, skopeo, docker load, podman load and ctr images import read it. Content is verified while it is
    written. Only public images that are completely stored are exported.
    """
    if target == "-" and is_json:
        raise UsageError("--json and --output - exclude each other: both write to standard output")
    output = Output(is_json, stdout=sys.stderr if target == "-" else sys.stdout)
    client = connect(directory)
    query = {"platforms": ",".join(platforms)} if platforms else {}
    found = [client.get("/v1/export", {"name": name, **query}) for name in dict.fromkeys(images)]
    sizes = {part["digest"]: part["size"] for each in found for part in (*each["blobs"], *each["manifests"])}
    with open_target(target, sys.stdout.buffer) as layout:
        received = _copy(client, layout, sizes, output)
        layout.finish(index_document(_entries(found)), docker_document(_docker_images(found)))
    total = sum(sizes.values())
    for each in found:
        shown = f" ({', '.join(each['platforms'])})" if each["platforms"] else ""
        output.line(f"{full_name(ImageName.parse(each['image']))}{shown}: {each['digest']}")
    output.line(f"{target}: {len(found)} image{'' if len(found) == 1 else 's'}, {size_text(total)}")
    exported = [{key: each[key] for key in ("image", "digest", "platforms")} for each in found]
    output.document({"output": target, "bytes": total, "received": received, "images": exported})


def _copy(client: ControlClient, layout: LayoutTarget, sizes: dict[str, int], output: Output) -> int:
    """Copy content into the layout; return the bytes that the cache sent."""
    received = 0
    columns = (TextColumn("writing"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    console, is_hidden = output.console(is_error=True), not output.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        bar = progress.add_task("", total=sum(sizes.values()))
        for text, size in sizes.items():
            digest = Digest.parse(text)
            if not layout.has(digest, size):
                with client.open("GET", f"/v1/content/{digest}", seconds=EXPORT_SECONDS) as response:
                    layout.add(digest, size, response)
                received += size
            progress.update(bar, advance=size)
    return received


def _entries(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the descriptors of `index.json`: of the images with their names, then of what refers to them."""
    entries, referrers = [], dict[str, dict[str, Any]]()
    for each in found:
        image = ImageName.parse(each["image"])
        described = {part["digest"]: part for part in each["manifests"]}
        entries.append(_entry(described[each["digest"]], full_name(image)))
        for referrer in each["referrers"]:
            name = full_name(ImageName(image.host, image.repository, referrer["tag"])) if referrer["tag"] else None
            referrers.setdefault(referrer["digest"], _entry(described[referrer["digest"]], name))
    named = {entry["digest"] for entry in entries}
    return entries + [entry for digest, entry in referrers.items() if digest not in named]


def _docker_images(found: list[dict[str, Any]]) -> Iterator[tuple[ImageName, list[str]]]:
    """Return each image with the digests of its config and layers, of the platform of this machine if it is there.

    Docker's own format has no image indexes, and no artifacts.
    """
    for each in found:
        parts: dict[str, list[str]] = each["parts"]
        digests = parts.get(default_platform()) or next(iter(parts.values()), [])
        if digests:
            yield ImageName.parse(each["image"]), digests


def _entry(part: dict[str, Any], name: str | None) -> dict[str, Any]:
    entry = {"mediaType": part["media_type"], "digest": part["digest"], "size": part["size"]}
    if name is not None:
        entry["annotations"] = {CONTAINERD_NAME: name, REF_NAME: name}
    return entry
