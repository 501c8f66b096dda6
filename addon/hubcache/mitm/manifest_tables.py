"""Renders image indexes, referrers, image manifests and configs as tables (OCI image-spec).

The documents come from clients and upstreams: fields may be missing or have any type, and lists any length.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from . import amounts
from .text_table import MAX_ROWS, cell, fields, table

type IsStored = Callable[[str], bool | None]
"""Whether the cache stores the content with this digest; None where that is not known."""

_MAX_ANNOTATIONS = 20
_ATTESTS = "vnd.docker.reference.digest"
_SHOWN_ANNOTATIONS = (
    *("org.opencontainers.image.ref.name", "org.opencontainers.image.version", "org.opencontainers.image.created"),
    *("org.opencontainers.image.title", "org.opencontainers.image.revision", "in-toto.io/predicate-type", _ATTESTS),
    "dev.sigstore.bundle.predicateType",
)
"""The annotations of a descriptor that tell it from others."""
_MAX_SIZE = 1 << 62
_HEAD = ("CONTENT", "SIZE", "STORED", "TYPE", "ARTIFACT", "DIGEST", "ANNOTATIONS")


def is_renderable(document: object) -> bool:
    """Whether a JSON document is one of those that are rendered."""
    if not isinstance(document, dict):
        return False
    is_manifest = isinstance(document.get("manifests", document.get("layers", document.get("blobs"))), list)
    return is_manifest or is_config(document)


def is_config(document: dict[str, object]) -> bool:
    """Whether a JSON document is the config of an image (OCI image-spec, config.md)."""
    return isinstance(document.get("rootfs"), dict) and "architecture" in document and "os" in document


def render(document: dict[str, object], size: int, is_stored: IsStored) -> str:
    """Return the lines for a document of `size` bytes for which `is_renderable` is true."""
    if is_config(document):
        return "\n".join(_config(document, size))
    if isinstance(document.get("manifests"), list):
        return "\n".join(_index(document, size, is_stored))
    return "\n".join(_manifest(document, size, is_stored))


def _index(document: dict[str, object], size: int, is_stored: IsStored) -> list[str]:
    entries = _list(document.get("manifests"))
    title = [f"image index: {len(entries)} manifests, {amounts.size(size)}", *_about(document), ""]
    rows = (_row(_platform(entry), entry, is_stored) for entry in entries)
    return title + table(_HEAD, rows, len(entries))


def _manifest(document: dict[str, object], size: int, is_stored: IsStored) -> list[str]:
    layers = _list(document.get("layers", document.get("blobs")))
    total = sum(_size(each) or 0 for each in layers[:10_000])
    title = [f"image manifest: {len(layers)} layers with {amounts.size(total)}, itself {amounts.size(size)}"]
    parts = [("subject", document.get("subject")), ("config", document.get("config"))]
    parts = [(name, each) for name, each in parts if isinstance(each, dict)]
    named = [*parts, *((f"layer {number}", each) for number, each in enumerate(layers[:MAX_ROWS], 1))]
    rows = (_row(name, each, is_stored) for name, each in named)
    return [*title, *_about(document), "", *table(_HEAD, rows, len(parts) + len(layers))]


def _config(document: dict[str, object], size: int) -> list[str]:
    history = _list(document.get("history"))
    run = _dict(document.get("config"))
    facts = [(name, document.get(name)) for name in ("created", "author", "os.version")]
    facts += [(name, run.get(name)) for name in ("User", "WorkingDir", "Entrypoint", "Cmd", "StopSignal")]
    facts += [(name, list(islice(_dict(run.get(name)), MAX_ROWS))) for name in ("ExposedPorts", "Volumes")]
    lines = [f"image config: {_platform({'platform': document})}, {amounts.size(size)}", *fields(facts)]
    environment = [cell(each) for each in _list(run.get("Env"))[:MAX_ROWS]]
    lines += ["", "environment", *(f"  {each}" for each in environment)] if environment else []
    labels = fields(islice(_dict(run.get("Labels")).items(), MAX_ROWS))
    lines += ["", "labels", *(f"  {each}" for each in labels)] if labels else []
    steps = ((cell(_dict(each).get("created")), _step(each)) for each in history)
    return [*lines, "", *table(("CREATED", "HISTORY"), steps, len(history))]


def _step(entry: object) -> str:
    step = _dict(entry)
    is_empty = step.get("empty_layer") is True
    return ("(no layer) " if is_empty else "") + cell(step.get("created_by") or step.get("comment"))


def _about(document: dict[str, object]) -> list[str]:
    annotations = _dict(document.get("annotations"))
    types = [("media type", document.get("mediaType")), ("artifact type", document.get("artifactType"))]
    return fields([*types, *islice(annotations.items(), _MAX_ANNOTATIONS)])


def _row(name: str, entry: object, is_stored: IsStored) -> tuple[str, ...]:
    descriptor = _dict(entry)
    size, digest = _size(entry), descriptor.get("digest")
    stored = is_stored(digest) if isinstance(digest, str) else None
    return (
        name,
        "?" if size is None else amounts.size(size),
        "" if stored is None else "yes" if stored else "no",
        _short_type(descriptor.get("mediaType")),
        _short_type(descriptor.get("artifactType")),
        cell(digest),
        ", ".join(_annotations(_dict(descriptor.get("annotations")))),
    )


def _annotations(annotations: dict[str, object]) -> Iterator[str]:
    for name in _SHOWN_ANNOTATIONS:
        if name in annotations:
            label = "attests" if name == _ATTESTS else name.rpartition("/")[2].rpartition(".")[2]
            yield f"{label} {cell(annotations[name])}"


def _short_type(media_type: object) -> str:
    return cell(media_type).removeprefix("application/").removeprefix("vnd.")


def _platform(entry: object) -> str:
    platform = _dict(_dict(entry).get("platform"))
    if _dict(_dict(entry).get("annotations")).get("vnd.docker.reference.type") == "attestation-manifest":
        return "attestations"
    names = (cell(platform.get(name)) for name in ("os", "architecture", "variant", "os.version"))
    return "/".join(filter(None, names)) or "no platform"


def _size(entry: object) -> int | None:
    size = _dict(entry).get("size")
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 <= size < _MAX_SIZE else None


def _dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
