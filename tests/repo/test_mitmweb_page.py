"""What the operating page says about mitmweb agrees with the program."""

import re

import pytest
from hubcache.mitm.flow_markers import CHARACTERS, Marker
from mitmproxy import flowfilter
from support.mitm import tflow
from support.paths import ADDON

_PAGE = (ADDON / "hubcache" / "operate" / "README.md").read_text().partition("### In mitmweb")[2].partition("\n## ")[0]
_FILTERS = re.findall(r"^\| `([^`|]*)` \|", _PAGE, re.MULTILINE)

_CASES = (
    ("~marker :stale:", "", ":stale:", True),
    ("~marker :stale:", "", ":hit:", False),
    ('~comment "upstream error"', "upstream error 503: down", ":error:", True),
    ('~comment "upstream error"', "client error 400: x", ":error:", False),
    ('~comment "not stored"', "miss: from x, not stored, 5 B in 1 s", ":miss:", True),
    ("~marker :miss: & ~u /blobs/", "", ":miss:", True),
    ("~u library/debian & !~marker :hit:", "", ":miss:", True),
    ("~u library/debian & !~marker :hit:", "", ":hit:", False),
    ("~src 10.0.0.7", "", "", False),
)
"""Filter, comment, marker, and whether the filter finds a flow that has them."""


def test_every_marker_is_explained() -> None:
    rows = re.findall(r"^\| (\S) \| (.*?) \|", _PAGE, re.MULTILINE)
    shown = {(word, character) for character, words in rows for word in re.findall(r"`(\w+)(?: error)?`", words)}
    errors = {(side, CHARACTERS[Marker.ERROR]) for side in ("client", "cache", "upstream")}
    assert shown == {(each.value, CHARACTERS[each]) for each in Marker if each is not Marker.ERROR} | errors


@pytest.mark.parametrize(("text", "comment", "marked", "is_found"), _CASES)
def test_filter_of_the_page_finds_what_it_says(text: str, comment: str, marked: str, is_found: bool) -> None:
    flow = tflow.tflow()
    flow.request.path, flow.comment, flow.marked = "/v2/library/debian/blobs/x", comment, marked
    parsed = flowfilter.parse(text)
    assert parsed is not None
    assert bool(parsed(flow)) is is_found


def test_every_filter_of_the_page_is_tried() -> None:
    assert {text for text, *_ in _CASES} == set(_FILTERS)
