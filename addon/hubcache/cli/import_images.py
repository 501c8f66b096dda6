"""Stores the images of OCI image layouts, and records them as images of their registries: the command `import`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ..oci.digest import Digest
from ..oci.errors import RegistryError
from ..oci.image_name import ImageName
from .client import ControlClient
from .errors import UsageError
from .layout_source import LayoutSource, blob_name, open_layout
from .oci_layout import Layout, LayoutImage, read_layout
from .options import Directory, Json, connect
from .output import Output
from .tar_index import ArchiveError
from .text import size as size_text


def import_images(
    archives: Annotated[
        list[Path],
        typer.Argument(metavar="DIR|FILE.tar", help="An OCI image layout: of hubcache export, skopeo or buildx."),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="IMAGE", help="The name of the image, in a layout of one image that has no whole name."
        ),
    ] = None,
    directory: Directory = None,
    is_json: Json = False,
) -> None:
    """Store images of OCI image layouts, so that clients can pull them without their registry.

    Every blob is verified. An imported image counts as a public image of the registry in its name, validated at the
    time of the import: import only what you trust. Tags are recorded after all content is stored.
    """
    output = Output(is_json)
    if name is not None:
        if len(archives) > 1:
            raise UsageError("--as names the image of one layout only")
        name = _parsed(name)
    client = connect(directory)
    results = []
    for path in archives:
        with open_layout(path) as source:
            results.append(_import_layout(client, path, source, name, output))
    output.document({"layouts": results})


def _import_layout(
    client: ControlClient, path: Path, source: LayoutSource, name: str | None, output: Output
) -> dict[str, Any]:
    layout = read_layout(source)
    images, referrers = _sorted(layout, name)
    missing = client.post("/v1/content", {"contents": layout.sizes})["missing"]
    sent = _send(client, source, layout, set(missing), output)
    recorded = []
    for image in images:
        about = [each.digest for each in referrers if each.subject in image.manifests]
        body = {"image": image.name, "digest": image.digest, "media_type": image.manifests[image.digest]}
        recorded.append(client.post("/v1/tag", {**body, "referrers": about}))
        output.line(f"{image.name}: imported, {image.digest}")
    total = sum(layout.sizes.values())
    output.line(f"{path}: {size_text(total)}, {size_text(sent)} of which were not stored before")
    return {"layout": str(path), "bytes": total, "sent": sent, "images": recorded}


def _sorted(layout: Layout, name: str | None) -> tuple[list[LayoutImage], list[LayoutImage]]:
    """Return the images, all with names, and what refers to them; raises `ArchiveError`."""
    present = {digest for image in layout.images for digest in image.manifests}
    is_referrer = [image.name is None and image.subject in present for image in layout.images]
    images = [image for image, refers in zip(layout.images, is_referrer, strict=True) if not refers]
    if name is not None:
        if len(images) != 1:
            raise ArchiveError(f"it has {len(images)} images, so that --as cannot name them")
        images[0].name = name
    unnamed = [image for image in images if image.name is None]
    if unnamed:
        raise ArchiveError(f"its image {unnamed[0].digest} has no whole name: name it with --as IMAGE")
    return images, [image for image, refers in zip(layout.images, is_referrer, strict=True) if refers]


def _send(client: ControlClient, source: LayoutSource, layout: Layout, missing: set[str], output: Output) -> int:
    """Send what is missing, manifests after what they refer to; return how many bytes that were."""
    manifests = layout.manifests
    blobs = [digest for digest in layout.sizes if digest not in manifests]
    total = sum(layout.sizes[digest] for digest in (*blobs, *manifests) if digest in missing)
    columns = (TextColumn("storing"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    console, is_hidden = output.console(is_error=True), not output.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=is_hidden) as progress:
        bar = progress.add_task("", total=total)
        for digest in (*blobs, *manifests):
            if digest in missing:
                _put(client, source, digest, layout.sizes[digest], manifests)
                progress.update(bar, advance=layout.sizes[digest])
    return total


def _put(
    client: ControlClient, source: LayoutSource, digest: Digest, size: int, manifests: Mapping[Digest, str]
) -> None:
    media_type = manifests.get(digest)
    query = None if media_type is None else {"media_type": media_type}
    client.put(f"/v1/content/{digest}", source.open(blob_name(digest)), size, query)


def _parsed(text: str) -> str:
    try:
        return str(ImageName.parse(text))
    except RegistryError as error:
        raise UsageError(f"--as: {text[:200]!r} is not the name of an image: {error}") from error
