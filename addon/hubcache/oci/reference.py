"""Parses URL paths, names, tags and ranges (distribution spec, "Endpoints" and "Pulling manifests"; RFC 9110
section 14.2)."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, parse_qsl, unquote_to_bytes, urlencode

from .digest import Digest
from .errors import DigestInvalid, ManifestInvalid, NameInvalid, RangeInvalid

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_FALLBACK = re.compile(r"sha256-([0-9a-f]{64})(?:\.[A-Za-z0-9._-]+)?")
_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*")

MAX_NAME = 255
"""Characters of a repository name; Docker Hub and distribution/distribution refuse longer ones."""


@dataclass(frozen=True, slots=True)
class Ping:
    """`GET /v2/`, by which clients find out whether the API is supported and whether they must authenticate."""


@dataclass(frozen=True, slots=True)
class ManifestTarget:
    """A manifest, by tag (`str`) or by digest."""

    repository: str
    reference: str | Digest


@dataclass(frozen=True, slots=True)
class BlobTarget:
    """A blob."""

    repository: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class ReferrersTarget:
    """The manifests whose `subject` is this digest ("Listing Referrers")."""

    repository: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class OtherTarget:
    """Any other path (uploads, tag lists, catalog, unknown paths); `repository` when the path names one."""

    repository: str | None


type Target = Ping | ManifestTarget | BlobTarget | ReferrersTarget | OtherTarget


def parse_name(text: str) -> str:
    """Return a repository name if it is valid; raises `NameInvalid`."""
    if len(text) > MAX_NAME or _NAME.fullmatch(text) is None:
        raise NameInvalid("invalid repository name", {"name": text[:MAX_NAME]})
    return text


def parse_reference(text: str) -> str | Digest:
    """Parse a tag or digest; raises `DigestInvalid` or `ManifestInvalid`."""
    if ":" in text:
        return Digest.parse(text)
    if _TAG.fullmatch(text) is None:
        raise ManifestInvalid("invalid tag", {"tag": text[:200]})
    return text


def parse_target(path: str) -> Target:
    """Parse the path of a URL (a query is ignored); raises `NameInvalid`, `DigestInvalid` or `ManifestInvalid`.

    Percent-encoding is decoded segment by segment (some clients encode the colon of a digest). Encoded slashes and
    malformed escapes have no meaning in registry paths and are refused.
    """
    segments = [_decode(segment) for segment in path.partition("?")[0].split("/")]
    if segments[:2] != ["", "v2"]:
        return OtherTarget(None)
    rest = segments[2:]
    if rest in ([], [""]):
        return Ping()
    if len(rest) >= 3 and rest[-2] == "manifests":
        return ManifestTarget(parse_name("/".join(rest[:-2])), parse_reference(rest[-1]))
    if len(rest) >= 3 and rest[-2] == "blobs" and rest[-1] != "uploads":
        return BlobTarget(parse_name("/".join(rest[:-2])), Digest.parse(rest[-1]))
    if len(rest) >= 3 and rest[-2] == "referrers":
        return ReferrersTarget(parse_name("/".join(rest[:-2])), Digest.parse(rest[-1]))
    return OtherTarget(_repository_of(rest))


def uploaded_digest(query: str) -> Digest | None:
    """Return the blob that a request uploads (`digest`; distribution spec, "Pushing blobs") or mounts (`mount`)."""
    parameters = parse_qs(query)
    for name in ("digest", "mount"):
        if name in parameters:
            try:
                return Digest.parse(parameters[name][0])
            except DigestInvalid:
                return None
    return None


def is_api_path(path: str) -> bool:
    """Whether a path belongs to the registry API; their hosts also have web pages and older APIs (`/v1/search`)."""
    return path == "/v2" or path.startswith("/v2/")


def subject_of_tag(tag: str) -> Digest | None:
    """Return the digest that a fallback tag belongs to; None for other tags.

    Clients request `sha256-HEX` where a registry has no referrers API ("Backwards Compatibility"); cosign appends
    `.sig`, `.att` or `.sbom`.
    """
    found = _FALLBACK.fullmatch(tag)
    return Digest.parse(f"sha256:{found[1]}") if found else None


def fallback_tag(subject: Digest) -> str:
    """Return the tag that lists a digest's referrers where there is no referrers API ("Referrers Tag Schema")."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


def referrers_query(query: str) -> str:
    """Return the query of a referrers request with sorted parameters, so that equivalent requests have equal queries.

    `ns` is removed: it names the registry (see `Interception.place_in_mirror`) and does not affect the result.
    """
    text = query.encode(
        errors="replace"
    ).decode()  # bytes that are not UTF-8 arrive as surrogates, which cannot be encoded
    return urlencode(sorted((name, value) for name, value in parse_qsl(text, True) if name != "ns"))


def _repository_of(rest: list[str]) -> str | None:
    """Return the repository in the path of an upload or a tag list, None for other paths."""
    for marker in (["blobs", "uploads"], ["blobs", "upload"], ["tags", "list"]):  # "upload": ghcr.io
        for at in range(len(rest) - len(marker), 0, -1):
            if rest[at : at + len(marker)] == marker:
                name = "/".join(rest[:at])
                return name if _NAME.fullmatch(name) and len(name) <= MAX_NAME else None
    return None


def _decode(segment: str) -> str:
    """Decode the percent-encoding of a path segment; raises `NameInvalid`."""
    if "%" not in segment:
        return segment
    if _BAD_ESCAPE.search(segment):
        raise NameInvalid("malformed percent-encoding in path", {"segment": segment[:200]})
    try:
        decoded = unquote_to_bytes(segment).decode("ascii")
    except UnicodeError as error:  # a raw byte above 127 arrives as a surrogate, which cannot be encoded
        raise NameInvalid("path is not ASCII", {"segment": segment[:200]}) from error
    if "/" in decoded or not decoded.isprintable():
        raise NameInvalid("encoded slash or control character in path", {"segment": segment[:200]})
    return decoded


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A half-open interval of byte positions, `0 <= start < end`."""

    start: int
    end: int


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range that a `Range` header requests of a body of `size` bytes; None for the whole body.

    A malformed header and other units are ignored (RFC 9110 section 14.2). Requests for several ranges get the whole
    body, as the section allows; no registry client sends them. Raises `RangeInvalid` for an unsatisfiable range.
    """
    match = _RANGE.fullmatch(header) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, end = max(0, size - int(match[2])), size
        satisfiable = int(match[2]) > 0
        if satisfiable and size == 0:
            return None  # satisfiable by section 14.1.2, but `Content-Range` cannot express it
    else:
        start, end = int(match[1]), size
        if match[2] != "":
            if int(match[2]) < start:
                return None
            end = min(size, int(match[2]) + 1)
        satisfiable = start < size
    if not satisfiable:
        raise RangeInvalid("requested range not satisfiable", size)
    return ByteRange(start, end)
