"""Finds image names in files: plain lists, compose files, Kubernetes manifests, and the pods of a cluster."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..oci.errors import HubcacheError, RegistryError
from ..oci.image_name import ImageName
from .yaml_documents import DocumentError, read_documents

_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
_STATUSES = tuple(name.removesuffix("s") + "Statuses" for name in _CONTAINERS)
_KEY = re.compile(r"""^\s*(?:- )?["']?[A-Za-z_$][\w.$/-]*["']?\s*:(?:\s|$)""")
"""A line with a key of a YAML mapping. `debian:12` is none: a space or the end of the line must follow the colon."""
_COMMENT = re.compile(r"(?:^|\s)#.*")
_VARIABLE = re.compile(r"\$(?:(\$)|([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:(:?[-?+])([^{}$]*))?\})")
"""A variable of a compose file (compose-spec, "Interpolation"); not those that are nested in another one's default."""


class ImageListError(HubcacheError):
    """A file names no images, or a name is malformed; the message begins with the file's name."""


def read_image_list(text: str, source: str, environment: Mapping[str, str]) -> list[str]:
    """Return the images that a text names, in order and each once; raises `ImageListError`.

    The text is a plain list (an image on each line, with comments), a compose file, or Kubernetes manifests. `source`
    is the file's name for messages; `environment` has the variables of a compose file.
    """
    try:
        if _is_plain(text):
            found = [*_plain_list(text)]
        else:
            found = [name for document in read_documents(text, "image") for name in _of_document(document, environment)]
    except (DocumentError, ImageListError) as error:
        raise ImageListError(f"{source}: {error}") from error
    if not found:
        raise ImageListError(f"{source}: it names no images")
    return list(dict.fromkeys(found))


def images_of_pods(text: str) -> list[str]:
    """Return the images of `kubectl get pods -o json`, and those with the digests that run; raises `ImageListError`.

    A tag may refer to another image by now than the one that runs, so both are returned.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageListError("kubectl: its output is not JSON") from error
    items = document.get("items") if isinstance(document, dict) else None
    if not isinstance(items, list):
        raise ImageListError("kubectl: its output is not a list of pods")
    found = [name for name in _of_pod_specs(items) if _is_image(name)]
    for pod in items:
        status = pod.get("status") if isinstance(pod, dict) else None
        for key in _STATUSES:
            found += filter(None, map(_running_image, _list(status, key)))
    return list(dict.fromkeys(found))


def _is_plain(text: str) -> bool:
    """Whether a text is a plain list: neither JSON, nor does any of its lines have a key or begin a document."""
    if text.lstrip()[:1] in ("{", "["):
        return False
    return not any(_KEY.match(line) or line.rstrip() in ("---", "...") for line in text.splitlines())


def _plain_list(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        name = _COMMENT.sub("", line).strip().removeprefix("- ").strip()
        if name:
            yield _checked(name, f"line {number}: ")


def _of_document(document: Any, environment: Mapping[str, str]) -> Iterator[str]:
    """Return the images of a YAML document, whose kind is known by its keys."""
    if isinstance(document, list) and all(isinstance(item, str) for item in document):
        yield from (_checked(item) for item in document)
    elif isinstance(document, dict) and "apiVersion" in document:
        if document.get("kind") != "CustomResourceDefinition":  # its schemas describe pods, and contain none
            yield from (_checked(name) for name in _of_pod_specs(document))
    elif isinstance(document, dict) and isinstance(document.get("services"), dict):
        for service in document["services"].values():
            image = service.get("image") if isinstance(service, dict) else None
            if isinstance(image, str) and image:
                yield _checked(_interpolated(image, environment))
    elif document is not None:
        raise ImageListError(
            "a document is neither a compose file (with `services`) nor a Kubernetes manifest (with `apiVersion`)"
        )


def _of_pod_specs(root: Any) -> Iterator[str]:
    """Return the images of all containers and volumes in the pod specs below a value, whatever resource has them."""
    pending, seen = [root], set[int]()
    while pending:
        value = pending.pop()
        if not isinstance(value, dict | list) or id(value) in seen:
            continue
        seen.add(id(value))
        pending.extend(reversed([*(value.values() if isinstance(value, dict) else value)]))
        containers = [item for key in _CONTAINERS for item in _list(value, key)]
        for item in containers:
            if isinstance(item, dict) and isinstance(name := item.get("image"), str) and name:
                yield name
        for volume in _list(value, "volumes") if containers else ():
            image = volume.get("image") if isinstance(volume, dict) else None
            if isinstance(image, dict) and isinstance(name := image.get("reference"), str) and name:
                yield name


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _running_image(status: Any) -> str | None:
    """Return a container's image by the digest that runs, from `docker.io/library/nginx@sha256:…`, before which docker
    wrote `docker-pullable://`; None for an image that has no digest of a registry."""
    image_id = status.get("imageID") if isinstance(status, dict) else None
    name = image_id.rpartition("://")[2] if isinstance(image_id, str) else ""
    return name if "@" in name and _is_image(name) else None


def _interpolated(text: str, environment: Mapping[str, str]) -> str:
    """Return the value of a compose file with its variables replaced; raises `ImageListError` for one without value."""

    def replace(found: re.Match[str]) -> str:
        escaped, plain, braced, operator, default = found.groups()
        name = plain or braced
        if escaped:
            return "$"
        value = environment.get(name)
        is_set = bool(value) if operator and operator.startswith(":") else value is not None
        if operator in ("+", ":+"):
            return default if is_set else ""
        if is_set:
            return value or ""
        if operator in ("-", ":-"):
            return default
        raise ImageListError(f"the variable {name} of image {text!r} is not set")

    return _VARIABLE.sub(replace, text)


def _is_image(text: str) -> bool:
    try:
        ImageName.parse(text)
    except RegistryError:
        return False
    return True


def _checked(text: str, where: str = "") -> str:
    """Return an image name; raises `ImageListError` if it is malformed."""
    try:
        ImageName.parse(text)
    except RegistryError as error:
        raise ImageListError(f"{where}{text[:200]!r} is not the name of an image: {error}") from error
    return text
