"""Removes images and content from the store: the command `purge`."""

import re
import sys
from typing import Annotated, Any

import typer

from .client import ControlClient
from .errors import FAILURES, RefusedError
from .images import matching, stored_images
from .options import Directory, Json, complete_image, connect
from .output import Column, Output, number
from .text import age, counted, size

_DIGEST = re.compile(r"sha(?:256|512):.*")
_PATTERN = re.compile(r"[*?\[]")


def purge(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|DIGEST",
            help="An image such as debian:12, a pattern such as 'debian:*', or a digest.",
            autocompletion=complete_image,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove pinned content, too; the pin stays.")] = False,
    directory: Directory = None,
    is_json: Json = False,
) -> None:
    """Remove images, or content by its digest, from the store.

    Content that another stored tag uses stays. Clients that are reading removed content receive all of it. In a fleet,
    it is also removed from the bucket, while other nodes keep what they have stored.
    """
    output = Output(is_json)
    client = connect(directory)
    targets, images = _targets(client, names)
    if len(targets) > 1 or any(_PATTERN.search(name) for name in names):
        _announce(output, targets, images)
    if not yes and is_interactive():
        what = targets[0] if len(targets) == 1 else f"these {len(targets)}"
        typer.confirm(f"Remove {what} from the store?", err=True, abort=True)
    results, refused = _remove(client, output, targets, force)
    output.document({"purged": results})
    if refused is not None:
        raise typer.Exit(RefusedError.code if len(targets) == 1 else FAILURES)


def is_interactive() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty()


def _targets(client: ControlClient, names: list[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the images and digests to remove, each once, and what the cache reports about the images."""
    images = {str(image["name"]): image for image in stored_images(client)}
    targets: dict[str, None] = {}
    for name in names:
        if _PATTERN.search(name):
            found = matching(list(images.values()), [name])
            if not found:
                raise RefusedError(f"no stored image matches {name}")
            targets |= dict.fromkeys(str(image["name"]) for image in found)
        else:
            targets[name] = None
    return list(targets), images


def _announce(output: Output, targets: list[str], images: dict[str, dict[str, Any]]) -> None:
    """Print what will be removed, to standard error, so that it is seen also when the result goes into a pipe."""
    errors = Output(stdout=output.stderr)
    errors.line(f"To be removed from the store ({len(targets)}):")
    known = [images.get(name, {}) for name in targets]
    errors.table(
        [Column("image"), number("stored"), Column("last request")],
        [
            (name, size(image.get("stored_bytes")), age(image.get("last_request")))
            for name, image in zip(targets, known, strict=True)
        ],
    )


def _remove(
    client: ControlClient, output: Output, targets: list[str], force: bool
) -> tuple[list[dict[str, Any]], RefusedError | None]:
    """Remove one after the other; return the results, and the last error if there was one."""
    results: list[dict[str, Any]] = []
    refused = None
    for target in targets:
        field = "digest" if _DIGEST.fullmatch(target) else "image"
        try:
            result = client.post("/v1/purge", {field: target, "force": force})
        except RefusedError as error:
            refused = error
            results.append({field: target, "error": str(error)})
            output.message(f"hubcache: {target}: {error}")
            continue
        results.append({field: target} | result)
        output.line(f"{target}: {_summary(result)}")
    return results, refused


def _summary(result: dict[str, Any]) -> str:
    parts = [f"removed {counted(len(result['removed']), 'object')}, {size(result['bytes'])}"]
    if result["removed_from_bucket"]:
        parts.append("removed from the bucket")
    if kept := len(result["kept"]):
        parts.append(f"{counted(kept, 'object')} kept, because other images use them")
    if held := len(result["held"]):
        parts.append(f"{counted(held, 'object')} kept for now, because another command stores or exports them")
    if read := len(result["being_read"]):
        parts.append(f"{read} of the removed are being read, and their space is freed afterwards")
    return "; ".join(parts)
