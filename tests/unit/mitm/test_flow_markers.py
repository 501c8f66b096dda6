"""The markers: mitmproxy has a character for each name, every font has the character, and filters find the name."""

import pytest
from hubcache.mitm.flow_markers import CHARACTERS, STANDARD_NAMES, Marker, add_names
from mitmproxy import flowfilter
from mitmproxy.utils.emoji import emoji
from support.mitm import tflow

WGL4 = set("√≡≈↓→↑•↔")
"""Characters of Microsoft's WGL4 set outside of ISO 8859-1 that are used; fonts without any emoji have them."""


def test_every_marker_has_a_character_that_fonts_have() -> None:
    assert set(CHARACTERS) == set(Marker) == set(STANDARD_NAMES)
    assert all(len(each) == 1 and (each in WGL4 or 0x20 < ord(each) < 0x100) for each in CHARACTERS.values())


def test_standard_names_are_in_the_table_of_mitmproxy() -> None:
    assert set(STANDARD_NAMES.values()) <= set(emoji)


def test_own_names_hide_no_name_of_mitmproxy() -> None:
    table = {name: character for name, character in emoji.items() if character not in CHARACTERS.values()}
    before = dict(table)
    names = add_names(table)
    assert before.items() <= table.items()
    assert {table[names[marker]] for marker in Marker} == set(CHARACTERS.values())


@pytest.mark.parametrize("marker", Marker)
def test_filter_finds_a_marker_by_its_name_and_no_other(marker: Marker) -> None:
    names = add_names({})
    found = flowfilter.parse(f"~marker {names[marker]}")
    assert found is not None
    flow = tflow.tflow()
    for each in Marker:
        flow.marked = names[each]
        assert found(flow) is (each is marker)
