"""Digests cannot exist malformed, and the verifier accepts the expected bytes only."""

import hashlib

import pytest
from hubcache.oci.digest import Digest, Verifier
from hubcache.oci.errors import BadUpstream, DigestInvalid
from hypothesis import given
from hypothesis import strategies as st

HEX = "0123456789abcdef"


@given(
    st.sampled_from([("sha256", 64), ("sha512", 128)]).flatmap(
        lambda kind: st.text(HEX, min_size=kind[1], max_size=kind[1]).map(lambda text: f"{kind[0]}:{text}")
    )
)
def test_digest_text_is_parsed_to_an_equal_digest(text: str) -> None:
    assert str(Digest.parse(text)) == text


@given(st.text(max_size=150))
def test_other_text_is_refused_as_digest_invalid(text: str) -> None:
    with pytest.raises(DigestInvalid) as caught:
        Digest.parse(text)
    assert caught.value.code == "DIGEST_INVALID"


@pytest.mark.parametrize(
    "text",
    [
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 64 + "\n",
        " sha256:" + "a" * 64,
        "SHA256:" + "a" * 64,
        "sha512:" + "a" * 64,
        "sha256:" + "a" * 128,
        "md5:" + "a" * 32,
        "sha256" + "a" * 64,
        "sha256:../" + "a" * 61,
        "sha256:" + "\N{FULLWIDTH DIGIT ONE}" * 64,
    ],
)
def test_similar_text_is_refused(text: str) -> None:
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


def test_error_quotes_at_most_200_characters() -> None:
    with pytest.raises(DigestInvalid) as caught:
        Digest.parse("x" * 100_000)
    assert len(caught.value.body()) < 400


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_of_and_matches_agree_with_hashlib(data: bytes, other: bytes) -> None:
    digest = Digest.of(data)
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert digest.matches(other) == (data == other)


def test_sha512_digest_is_matched_with_sha512() -> None:
    digest = Digest.parse("sha512:" + hashlib.sha512(b"layer").hexdigest())
    assert digest.matches(b"layer")
    assert not digest.matches(b"Layer")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6), st.booleans())
def test_verifier_accepts_content_in_pieces_of_any_size(data: bytes, cuts: list[int], sized: bool) -> None:
    verifier = Verifier(Digest.of(data), len(data) if sized else None)
    at = 0
    for cut in [*sorted(min(cut, len(data)) for cut in cuts), len(data)]:
        verifier.update(data[at:cut])
        at = cut
    verifier.finish()
    assert verifier.received == len(data)


@given(st.binary(min_size=1, max_size=300), st.data())
def test_verifier_finds_one_flipped_bit(data: bytes, draw: st.DataObject) -> None:
    bit = draw.draw(st.integers(0, len(data) * 8 - 1))
    spoiled = bytearray(data)
    spoiled[bit // 8] ^= 1 << bit % 8
    verifier = Verifier(Digest.of(data), len(data))
    verifier.update(bytes(spoiled))
    with pytest.raises(BadUpstream, match="does not match"):
        verifier.finish()


def test_surplus_byte_is_refused_at_once_and_missing_byte_at_the_end() -> None:
    much, little = Verifier(Digest.of(b"layer"), 5), Verifier(Digest.of(b"layer"), 5)
    with pytest.raises(BadUpstream, match="more bytes"):
        much.update(b"layer!")
    little.update(b"laye")
    with pytest.raises(BadUpstream, match="fewer bytes") as caught:
        little.finish()
    assert caught.value.detail == {"digest": str(Digest.of(b"layer")), "expected": 5, "got": 4}
