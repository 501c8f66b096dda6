"""Challenges of registries: parsing and rendering."""

import pytest
from hubcache.transfer.challenge import Challenge
from hypothesis import given
from hypothesis import strategies as st

QUOTED = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), min_size=1, max_size=20)


@given(QUOTED, QUOTED | st.none(), QUOTED | st.none(), QUOTED | st.none())
def test_rendered_challenge_is_parsed_to_an_equal_challenge(
    realm: str, service: str | None, scope: str | None, error: str | None
) -> None:
    challenge = Challenge(realm, service, scope, error)
    assert Challenge.parse(challenge.render()) == challenge


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://a/token",service="r"', Challenge("https://a/token", "r", None)),
        ('bearer  Realm="https://a/token" , SERVICE=r', Challenge("https://a/token", "r", None)),
        ('Bearer realm="https://a?x=1,2",scope="repository:a:pull,push"',
         Challenge("https://a?x=1,2", None, "repository:a:pull,push")),
        ('Bearer realm="https://a",error="invalid_token"', Challenge("https://a", None, None, "invalid_token")),
        ('BEARER realm=https://a/token', Challenge("https://a/token", None, None)),
    ],
)  # fmt: skip
def test_challenges_of_real_registries_are_parsed(header: str, expected: Challenge) -> None:
    assert Challenge.parse(header) == expected


def test_first_of_two_challenges_in_a_header_is_used() -> None:
    both = 'Bearer realm="https://auth.example/token",service="s", Basic realm="people"'
    assert Challenge.parse(both) == Challenge("https://auth.example/token", "s", None)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic realm=x", 'Bearer service="r"', 'Bearer realm=""', "Bearerrealm=x"]
)
def test_header_without_a_bearer_challenge_and_a_realm_is_parsed_to_none(header: str | None) -> None:
    assert Challenge.parse(header) is None


@given(st.text(max_size=60) | st.text('realm="\\,= ', max_size=60).map(lambda text: "Bearer " + text))
def test_any_header_is_parsed_to_a_challenge_with_a_realm_or_to_none(header: str) -> None:
    challenge = Challenge.parse(header)
    assert challenge is None or challenge.realm
