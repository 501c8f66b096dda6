"""Reads and writes trace files."""

import json
import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from .trace import Kind, Request, Trace, TraceError

FORMATS = """\
A trace is a text file with one request per line, in any order. Each line has five fields, separated by blanks. Empty
lines and lines that start with # are skipped.

    TIME KEY SIZE KIND PULL

TIME is in seconds since any moment. KEY is the name of the object. SIZE is in bytes. KIND is manifest, config or layer.
PULL is a name that all requests of one pull share, or - if it is not known.

An access log (hubcache_access_log) has one JSON object per line, with these fields; others are ignored:

    ts          seconds since the epoch, or a time in ISO 8601
    kind        manifest, config, layer or blob
    digest      digest of the content
    size        size of the content in bytes
    repository  name of the repository, with the registry if there are several
    client      optional: address of the client
    result      optional: lines with the value error are skipped

Lines without digest or size (content that was not found) are skipped. Requests of one client for one repository belong
to the same pull until the client pauses for 5 minutes or requests the same content again.
"""

_KINDS = {"manifest": Kind.MANIFEST, "config": Kind.CONFIG, "layer": Kind.LAYER, "blob": Kind.LAYER}
_PAUSE = 300.0
_LONGEST = 20 * 365 * 86400.0


def read(path: Path) -> Trace:
    """Read a trace or an access log, which starts with `{`. Raises `TraceError`."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = _numbered(file)
            first = next(lines, None)
            if first is None:
                raise TraceError(f"{path}: no requests in it")
            parse = _log if first[1].startswith("{") else _text
            requests = list(parse(path, _chain(first, lines)))
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not a text file: {error.reason}") from error
    if not requests:
        raise TraceError(f"{path}: no line has time, digest and size")
    times = [request.time for request in requests]
    if max(times) - min(times) > _LONGEST:
        raise TraceError(f"{path}: the first and last time are more than 20 years apart; times must be in seconds")
    return Trace.of(path.name, requests)


def write(trace: Trace, path: Path) -> None:
    """Write a trace file that `read` can read. Raises `OSError`."""
    with path.open("w", encoding="utf-8") as file:
        file.write(f"# {trace.describe()}\n# time key size kind pull\n")
        for time, key, pull in zip(trace.times, trace.keys, trace.pulls, strict=True):
            kind = Kind(trace.kinds[key]).name.lower()
            file.write(f"{time:.3f} {key} {trace.sizes[key]} {kind} {'-' if pull < 0 else pull}\n")


type _Lines = Iterator[tuple[int, str]]


def _numbered(lines: Iterable[str]) -> _Lines:
    """Lines that are not empty and not comments, with their numbers."""
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def _chain(first: tuple[int, str], rest: _Lines) -> _Lines:
    yield first
    yield from rest


def _text(path: Path, lines: _Lines) -> Iterator[Request]:
    for number, line in lines:
        fields = line.split()
        if len(fields) != 5:
            raise TraceError(f"{path}:{number}: {len(fields)} fields, expected TIME KEY SIZE KIND PULL")
        time, key, size, kind, pull = fields
        try:
            request = Request(float(time), key, int(size), _KINDS[kind], None if pull == "-" else pull)
        except (ValueError, KeyError) as error:
            raise TraceError(f"{path}:{number}: not a time, size or kind: {error}") from error
        yield _checked(path, number, request)


def _checked(path: Path, number: int, request: Request) -> Request:
    if not math.isfinite(request.time) or request.size < 0:
        raise TraceError(f"{path}:{number}: time {request.time} or size {request.size} is out of range")
    return request


def _log(path: Path, lines: _Lines) -> Iterator[Request]:
    entries: list[tuple[Request, tuple[str, str]]] = []
    broken: TraceError | None = None
    for number, line in lines:
        if broken:
            raise broken
        try:
            entry = json.loads(line)
        except ValueError as error:  # allowed in the last line, which may be incomplete
            broken = TraceError(f"{path}:{number}: not JSON: {error}")
            broken.__cause__ = error
            continue
        try:
            request = _entry(entry)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise TraceError(f"{path}:{number}: not an entry of an access log: {error!r}") from error
        if request is not None:
            _checked(path, number, request)
            entries.append((request, (str(entry.get("client")), str(entry["repository"]))))
    yield from _with_pulls(entries)


def _entry(entry: dict[str, Any]) -> Request | None:
    """The request, or None if the entry has to be skipped."""
    digest, size = entry.get("digest"), entry.get("size")
    if not digest or size is None or entry.get("result") == "error":
        return None
    moment = entry["ts"]
    time = datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else float(moment)
    return Request(time, str(digest), int(size), _KINDS[entry["kind"]], None)


def _with_pulls(entries: list[tuple[Request, tuple[str, str]]]) -> Iterator[Request]:
    """The requests, ordered by time, each with the pull that it probably belongs to."""
    pulls: dict[tuple[str, str], tuple[str, float, set[str]]] = {}
    entries.sort(key=lambda entry: entry[0].time)
    for number, (request, source) in enumerate(entries):
        pull, last, requested = pulls.get(source, ("", -math.inf, set()))
        if request.time - last >= _PAUSE or request.key in requested:
            pull, requested = str(number), set()
        requested.add(request.key)
        pulls[source] = pull, request.time, requested
        yield request._replace(pull=pull)
