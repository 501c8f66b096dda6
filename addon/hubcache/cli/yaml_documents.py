"""Reads YAML and JSON documents that may be hostile, as plain lists, dictionaries and text.

Nodes are read without constructors, so no tag creates an object. An alias becomes a reference to the same object: the
result is as large as the text, however deep aliases are nested ("billion laughs"). Merge keys
(https://yaml.org/type/merge.html) copy entries, so their number has a bound.
"""

import json
import re
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

from ..oci.errors import HubcacheError

MAX_BYTES = 16 << 20
"""Largest size of one text in bytes."""

MAX_MERGED = 100_000
"""Entries that merge keys may copy in one document."""

MAX_DEPTH = 500
"""Brackets that may be open at a time. The time of the parser grows with the square of their number: 7 s for 5000."""

_MERGE = "<<"
_BRACKET = re.compile(r"[\[\]{}]")
_MARKER = re.compile(r"^---(?=\s|$)", re.MULTILINE)
"""The start of a document: in the first column it can be nothing else, not even in a block scalar (YAML 1.2.2, section
9.1.2)."""


class DocumentError(HubcacheError):
    """A text is not YAML, or it is too large; the message names the line."""


def read_documents(text: str, needed: str = "") -> Iterator[Any]:
    """Return the documents of a text; raises `DocumentError`. All scalars are text.

    Documents without the word `needed` are skipped unread, because the parser reads some 100 KB per second.
    """
    if len(text) > MAX_BYTES:
        raise DocumentError(f"it has more than {MAX_BYTES} bytes")
    if text.lstrip()[:1] in ("{", "[") and (found := _read_json(text)) is not None:
        yield found
        return
    starts = [0, *(found.start() for found in _MARKER.finditer(text)), len(text)]
    for start, end in pairwise(starts):
        if needed in text[start:end]:
            yield from _read_yaml(text[start:end], text.count("\n", 0, start))


def _read_json(text: str) -> Any:
    """Return a JSON document; None for other text, which may be YAML in flow style. JSON is YAML, but read faster."""
    try:
        return json.loads(text)
    except ValueError:
        return None
    except RecursionError as error:
        raise DocumentError("it is nested too deeply") from error


def _read_yaml(text: str, lines_before: int) -> Iterator[Any]:
    if _open_brackets(text) > MAX_DEPTH:
        raise DocumentError(f"line {lines_before + 1}: it is nested too deeply")
    from ruamel.yaml import YAML  # its import takes 50 ms
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        for node in YAML(typ="safe", pure=True).compose_all(text):
            yield _Builder().build(node)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {lines_before + mark.line + 1}: " if mark is not None else ""
        raise DocumentError(f"{where}not YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError) as error:  # a character that YAML forbids, a version that is not a number
        raise DocumentError(f"line {lines_before + 1}: not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise DocumentError(f"line {lines_before + 1}: it is nested too deeply") from error


def _open_brackets(text: str) -> int:
    """Return how many brackets are open at most, counting those in quotes and comments as well."""
    depths = accumulate(1 if found[0] in "[{" else -1 for found in _BRACKET.finditer(text))
    return max(depths, default=0)


class _Builder:
    """Builds one document from its nodes, each node once."""

    def __init__(self) -> None:
        self._built: dict[int, Any] = {}
        self._merged = 0

    def build(self, node: Any) -> Any:
        """Return the value of a node; a recursive alias refers to the container that it is in."""
        from ruamel.yaml.nodes import MappingNode, SequenceNode

        if id(node) in self._built:
            return self._built[id(node)]
        if isinstance(node, SequenceNode):
            items: list[Any] = []
            self._built[id(node)] = items
            items.extend(self.build(item) for item in node.value)
            return items
        if isinstance(node, MappingNode):
            mapping: dict[str, Any] = {}
            self._built[id(node)] = mapping
            self._fill(mapping, node)
            return mapping
        return None if node is None else str(node.value)

    def _fill(self, mapping: dict[str, Any], node: Any) -> None:
        merges = []
        for key, value in node.value:
            name, built = self.build(key), self.build(value)
            if name == _MERGE:
                merges += built if isinstance(built, list) else [built]
            elif isinstance(name, str):
                mapping[name] = built
        for merged in merges:
            for name, value in tuple(merged.items()) if isinstance(merged, dict) else ():
                self._merged += 1
                if self._merged > MAX_MERGED:
                    raise DocumentError(
                        f"line {node.start_mark.line + 1}: merge keys copy more than {MAX_MERGED} entries"
                    )
                mapping.setdefault(name, value)
