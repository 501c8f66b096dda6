"""Records are decoded exactly as they were encoded."""

import pytest
from hubcache.decide.records import (
    Link,
    ManifestRecord,
    ReferrersRecord,
    TagRecord,
    decode_hosts,
    decode_referrers,
    decode_tags,
    encode_hosts,
    encode_referrers,
    encode_tags,
)
from hubcache.oci.digest import Digest
from hubcache.oci.errors import DigestInvalid
from hypothesis import given
from hypothesis import strategies as st

FINITE = st.floats(allow_nan=False, allow_infinity=False)
TAGS = st.builds(TagRecord, st.binary(max_size=4).map(Digest.of), st.text(), st.integers(0, 1 << 60), FINITE)
REFERRERS = st.builds(
    ReferrersRecord, st.none() | st.binary(max_size=4).map(Digest.of), FINITE, st.text(), following=st.text()
)
MEDIA_TYPES = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)


@given(st.dictionaries(st.text(), TAGS, max_size=4))
def test_tag_records_round_trip(records: dict[str, TagRecord]) -> None:
    assert decode_tags(encode_tags(records)) == records


@given(st.dictionaries(st.text(), REFERRERS, max_size=4))
def test_referrers_records_round_trip(records: dict[str, ReferrersRecord]) -> None:
    assert decode_referrers(encode_referrers(records)) == records


@given(MEDIA_TYPES, st.binary())
def test_manifest_keeps_its_media_type_and_body(media_type: str, body: bytes) -> None:
    record = ManifestRecord(media_type, body)
    assert ManifestRecord.decode(record.encode()) == record


@given(st.text(st.characters(codec="utf-8")), st.binary())
def test_media_type_cannot_change_the_body(media_type: str, body: bytes) -> None:
    assert ManifestRecord.decode(ManifestRecord(media_type, body).encode()).body == body


@given(st.integers(0) | st.none())
def test_link_keeps_its_size(size: int | None) -> None:
    assert Link.decode(Link(size).encode()) == Link(size)


@pytest.mark.parametrize("link", [Link(5, confirmed=False), Link(5), Link(None, given=True)], ids=str)
def test_link_keeps_its_source(link: Link) -> None:
    assert Link.decode(link.encode()) == link


@pytest.mark.parametrize("text", ["[5, 1]", '[5, "else"]', "[5, null]"])
def test_link_with_an_unknown_source_is_not_confirmed(text: str) -> None:
    assert Link.decode(text) == Link(5, confirmed=False)


@given(st.frozensets(st.text()))
def test_registries_that_gave_private_content_round_trip(hosts: frozenset[str]) -> None:
    assert decode_hosts(encode_hosts(hosts)) == hosts


def test_private_content_of_an_early_store_has_no_known_source() -> None:
    assert decode_hosts("") == frozenset()


def test_tag_record_with_a_malformed_digest_is_refused() -> None:
    with pytest.raises(DigestInvalid):
        decode_tags('{"*/*": ["sha256:../../x", "a/b", 1, 2.0]}')


@pytest.mark.parametrize(("text", "size"), [("5", 5), ("null", None)])
def test_link_of_an_early_store_is_not_confirmed(text: str, size: int | None) -> None:
    assert Link.decode(text) == Link(size, confirmed=False)
