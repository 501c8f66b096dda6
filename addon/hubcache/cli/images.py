"""Lists and shows stored images, and pins them: the commands `ls`, `show`, `pin` and `unpin`."""

from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from .client import ControlClient
from .errors import FAILURES, RefusedError
from .options import Directory, Image, Images, Json, complete_image, connect
from .output import Column, Output, number
from .text import age, percent, short_digest, size

_SORT_KEYS = {"name": "name", "size": "stored_bytes", "requests": "requests", "last": "last_request"}


def list_images(
    patterns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATTERN",
            help="Names to list, with * for any characters: 'debian*'.",
            autocompletion=complete_image,
        ),
    ] = None,
    sort: Annotated[str, typer.Option(metavar="ORDER", help="Order: name, size, requests or last.")] = "name",
    directory: Directory = None,
    is_json: Json = False,
) -> None:
    """List the stored images."""
    if sort not in _SORT_KEYS:
        raise typer.BadParameter(f"{sort!r} is not one of {', '.join(_SORT_KEYS)}", param_hint="--sort")
    output = Output(is_json)
    images = matching(stored_images(connect(directory)), patterns or ["*"])
    key = _SORT_KEYS[sort]
    images.sort(key=lambda image: image["name"])
    if sort != "name":
        images.sort(key=lambda image: image[key] or 0, reverse=True)
    output.document({"images": images})
    if patterns and not images:
        raise RefusedError(f"no stored image matches {' '.join(patterns)}")
    output.table(
        [
            *(Column("image"), Column("digest"), Column("platforms"), number("size"), number("stored")),
            *(number("requests"), Column("last request"), Column("remarks")),
        ],
        [
            (
                image["name"],
                short_digest(image["digest"] or "-"),
                _platforms(image["platforms"]),
                size(image["size"]),
                percent(image["stored_bytes"], image["size"]),
                f"{image['requests']:.0f}",
                age(image["last_request"]),
                _remarks(image),
            )
            for image in images
        ],
    )


def show(image: Image, directory: Directory = None, is_json: Json = False) -> None:
    """Show one image: its manifests, and which of its blobs are stored."""
    output = Output(is_json)
    found = connect(directory).get("/v1/image", {"name": image})
    output.document(found)
    output.fields(
        [
            *(("image", found["name"]), ("registry", found["registry"]), ("repository", found["repository"])),
            *(("digest", found["digest"]), ("size", size(found["size"])), ("stored", _stored(found))),
            *(("requests", f"{found['requests']:.0f}"), ("last request", age(found["last_request"]))),
            *(("validated", age(found.get("validated"))), ("fresh until", age(found.get("fresh_until")))),
            ("remarks", _remarks(found)),
        ]
    )
    absent = [manifest["platform"] or manifest["digest"] for manifest in found["manifests"] if not manifest["stored"]]
    for manifest in found["manifests"]:
        if manifest["stored"]:
            _print_manifest(output, manifest)
    if absent:
        output.heading("not stored")
        output.line(", ".join(absent))
    if referrers := found["referrers"]:
        output.heading("referrers (signatures, attestations, SBOMs)")
        for referrer in referrers:
            output.line(f"{referrer['digest']}  {referrer['artifact_type'] or ''}".rstrip())


def pin(images: Images, directory: Directory = None, is_json: Json = False) -> None:
    """Keep images in the store: they are never removed to make space."""
    _for_each(images, "/v1/pin", connect(directory), Output(is_json))


def unpin(images: Images, directory: Directory = None, is_json: Json = False) -> None:
    """Take back `hubcache pin`; pins of the option hubcache_pins stay."""
    _for_each(images, "/v1/unpin", connect(directory), Output(is_json))


def stored_images(client: ControlClient) -> list[dict[str, Any]]:
    """Return the stored images as the cache describes them."""
    return list(client.get("/v1/images")["images"])


def matching(images: list[dict[str, Any]], patterns: list[str]) -> list[dict[str, Any]]:
    """Return the images whose names match one of these patterns; a name without a tag matches all tags."""
    return [image for image in images if any(_matches(str(image["name"]), pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(":")[0], pattern)


def _for_each(images: list[str], path: str, client: ControlClient, output: Output) -> None:
    """Send one request for each image; a refused one does not stop the others, and determines the exit code."""
    results = []
    refused = None
    for image in images:
        try:
            results.append(client.post(path, {"image": image}))
            output.line(results[-1]["message"])
        except RefusedError as error:
            refused = error
            results.append({"image": image, "error": str(error)})
            output.message(f"hubcache: {image}: {error}")
    output.document({"images": results})
    if refused is not None:
        raise typer.Exit(RefusedError.code if len(images) == 1 else FAILURES)


def _print_manifest(output: Output, manifest: dict[str, Any]) -> None:
    state = "complete" if manifest["complete"] else "incomplete"
    what = f"attestation of {manifest['attests']}" if manifest["attests"] else manifest["platform"] or "manifest"
    output.heading(f"{what}  {manifest['digest']}  {size(manifest['size'])}, {state}")
    output.table(
        [Column("blob"), number("size"), Column("stored"), Column("media type")],
        [
            (blob["digest"], size(blob["size"]), "yes" if blob["stored"] else "no", blob["media_type"] or "-")
            for blob in manifest["blobs"]
        ],
    )


def _platforms(platforms: list[str]) -> str:
    shown = ", ".join(platforms[:2])
    return f"{shown} and {len(platforms) - 2} more" if len(platforms) > 2 else shown


def _stored(image: dict[str, Any]) -> str:
    return f"{size(image['stored_bytes'])} ({percent(image['stored_bytes'], image['size'])})"


def _remarks(image: dict[str, Any]) -> str:
    remarks = [] if image["complete"] else ["incomplete" if image["digest"] else "not stored"]
    return ", ".join(remarks + [name for name in ("pinned", "private") if image[name]])
