"""Reads and writes traces in files."""

import json
import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from .trace import Kind, Request, Trace, TraceError

FORMATS = """\
A trace is a text file of one request a line, in any order, with five fields between blanks; empty lines and those that
start with # are skipped:

    TIME KEY SIZE KIND PULL

TIME in seconds (from when does not matter), KEY any name of the object, SIZE in bytes, KIND one of manifest, config,
layer, and PULL any name that the requests of one pull share (- where that is not known).

An access log has one JSON object a line, with these fields (others are ignored):

    ts          seconds since the epoch, or ISO 8601
    kind        manifest, config, layer or blob
    digest      of what was answered
    size        of the whole content in bytes
    repository  its name, with its registry where there are several
    client      optional: who asked
    result      optional: lines with error are left out

Lines without digest or size (what was not found, or not known) are left out. A pull is what one client asks of one
repository with less than 5 minutes between, until it asks for the same thing again.
"""

_KINDS = {"manifest": Kind.MANIFEST, "config": Kind.CONFIG, "layer": Kind.LAYER, "blob": Kind.LAYER}
_PAUSE = 300.0
_LONGEST = 20 * 365 * 86400.0


def read(path: Path) -> Trace:
    """A trace or an access log; which, the first line tells. Raises `TraceError`."""
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
        raise TraceError(f"{path}: no line tells time, digest and size")
    times = [request.time for request in requests]
    if max(times) - min(times) > _LONGEST:
        raise TraceError(f"{path}: its times are more than 20 years apart; they must be in seconds")
    return Trace.of(path.name, requests)


def write(trace: Trace, path: Path) -> None:
    """As a trace that `read` reads; raises `OSError`."""
    with path.open("w", encoding="utf-8") as file:
        file.write(f"# {trace.describe()}\n# time key size kind pull\n")
        for time, key, pull in zip(trace.times, trace.keys, trace.pulls, strict=True):
            kind = Kind(trace.kinds[key]).name.lower()
            file.write(f"{time:.3f} {key} {trace.sizes[key]} {kind} {'-' if pull < 0 else pull}\n")


type _Lines = Iterator[tuple[int, str]]


def _numbered(lines: Iterable[str]) -> _Lines:
    """Lines that say something, with their numbers."""
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
        raise TraceError(f"{path}:{number}: time {request.time} or size {request.size} makes no sense")
    return request


def _log(path: Path, lines: _Lines) -> Iterator[Request]:
    entries: list[tuple[Request, tuple[str, str]]] = []
    broken: TraceError | None = None
    for number, line in lines:
        if broken:
            raise broken
        try:
            entry = json.loads(line)
        except ValueError as error:  # as the last line, it was being written when the program was stopped
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
    """The request, or None when it does not tell enough."""
    digest, size = entry.get("digest"), entry.get("size")
    if not digest or size is None or entry.get("result") == "error":
        return None
    moment = entry["ts"]
    time = datetime.fromisoformat(moment).timestamp() if isinstance(moment, str) else float(moment)
    return Request(time, str(digest), int(size), _KINDS[entry["kind"]], None)


def _with_pulls(entries: list[tuple[Request, tuple[str, str]]]) -> Iterator[Request]:
    """The requests, by time, with the pulls that they seem to be part of."""
    pulls: dict[tuple[str, str], tuple[str, float, set[str]]] = {}
    entries.sort(key=lambda entry: entry[0].time)
    for number, (request, who) in enumerate(entries):
        pull, last, asked = pulls.get(who, ("", -math.inf, set()))
        if request.time - last >= _PAUSE or request.key in asked:
            pull, asked = str(number), set()
        asked.add(request.key)
        pulls[who] = pull, request.time, asked
        yield request._replace(pull=pull)
