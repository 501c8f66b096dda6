"""`Cache-Status` values conform to RFC 9211 and name how the answer was made."""

import re

import pytest
from hubcache.serve import cache_status
from hypothesis import given
from hypothesis import strategies as st

MEMBER = re.compile(r'hubcache(?:; [a-z-]+(?:=(?:-?[0-9]+|[a-z-]+|"[\x20-\x21\x23-\x5b\x5d-\x7e]*"))?)+')
"""A member of the list: a token, then parameters that are flags, integers, tokens or quoted strings (RFC 8941)."""


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (cache_status.hit(), "hubcache; hit"),
        (cache_status.hit(41.6), "hubcache; hit; ttl=42"),
        (cache_status.validated(), "hubcache; fwd=stale; fwd-status=200; detail=validated"),
        (cache_status.fetched(stored=False), "hubcache; fwd=uri-miss"),
        (cache_status.fetched(stored=True), "hubcache; fwd=uri-miss; stored"),
        (cache_status.fetched(stored=True, collapsed=True), "hubcache; fwd=uri-miss; stored; collapsed"),
        (cache_status.bypassed(), "hubcache; fwd=bypass"),
    ],
)
def test_value_names_how_the_answer_was_made(value: str, words: str) -> None:
    assert value == words
    assert MEMBER.fullmatch(value)


def test_stale_answer_has_a_negative_ttl_even_when_just_over() -> None:
    assert cache_status.stale(90, "x").startswith("hubcache; hit; ttl=-90;")
    assert cache_status.stale(0, "x").startswith("hubcache; hit; ttl=-1;")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_reason_cannot_break_the_syntax_of_the_field(reason: str) -> None:
    assert MEMBER.fullmatch(cache_status.stale(5, reason))
