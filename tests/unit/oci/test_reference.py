"""Parsing URL paths, names, tags and ranges: valid ones have one meaning, others are refused with the right code."""

import string
from urllib.parse import quote

import pytest
from hubcache.oci.digest import Digest
from hubcache.oci.errors import DigestInvalid, ManifestInvalid, NameInvalid, RangeInvalid, RegistryError
from hubcache.oci.reference import (
    MAX_NAME,
    BlobTarget,
    ByteRange,
    ManifestTarget,
    OtherTarget,
    Ping,
    ReferrersTarget,
    fallback_tag,
    is_api_path,
    parse_name,
    parse_range,
    parse_reference,
    parse_target,
    referrers_query,
    subject_of_tag,
)
from hypothesis import example, given
from hypothesis import strategies as st

COMPONENTS = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
NAMES = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join).filter(lambda name: len(name) <= MAX_NAME)
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True)
DIGESTS = st.binary(max_size=8).map(Digest.of)
DIGEST = Digest.of(b"layer")


# -- names and references ------------------------------------------------------------------------------------------


@given(NAMES)
def test_valid_names_are_accepted(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "library/Debian", "a//b", "/a", "a/", "a..b", "a___b", "-a", "a-", ".a", "a.", "a b", "a\n", "..",
     "a/../b", "ä", "a:b", "a@b", "a%2fb", "a._b", "\N{CYRILLIC SMALL LETTER A}"],
)  # fmt: skip
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(NameInvalid):
        parse_name(name)


def test_name_over_255_characters_is_refused() -> None:
    assert parse_name("a" * 255)
    with pytest.raises(NameInvalid):
        parse_name("a" * 256)


@given(TAGS)
def test_valid_tags_are_accepted(tag: str) -> None:
    assert parse_reference(tag) == tag


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a" * 129, "a b", "a/b", "a\n", "ä", "latest?x"])
def test_invalid_tags_are_refused_as_manifest_invalid(tag: str) -> None:
    with pytest.raises(ManifestInvalid):
        parse_reference(tag)


def test_reference_with_a_colon_is_parsed_as_a_digest() -> None:
    assert parse_reference(str(DIGEST)) == DIGEST
    with pytest.raises(DigestInvalid):
        parse_reference("sha256:abc")


# -- paths -----------------------------------------------------------------------------------------------------------


@given(NAMES, TAGS | DIGESTS)
def test_manifest_path_is_parsed(name: str, reference: str | Digest) -> None:
    assert parse_target(f"/v2/{name}/manifests/{reference}") == ManifestTarget(name, reference)


@given(NAMES, DIGESTS)
def test_blob_path_is_parsed(name: str, digest: Digest) -> None:
    assert parse_target(f"/v2/{name}/blobs/{digest}") == BlobTarget(name, digest)


@given(NAMES, DIGESTS)
def test_percent_encoding_is_decoded(name: str, digest: Digest) -> None:
    escaped = "/".join("".join(f"%{ord(letter):02x}" for letter in part) for part in name.split("/"))
    assert parse_target(f"/v2/{escaped}/blobs/{quote(str(digest), safe='')}") == BlobTarget(name, digest)


@given(NAMES, TAGS, st.text(string.printable, max_size=30))
def test_query_is_ignored(name: str, tag: str, query: str) -> None:
    assert parse_target(f"/v2/{name}/manifests/{tag}?{query}") == ManifestTarget(name, tag)


@given(st.lists(st.text(st.characters(exclude_characters="/?"), max_size=6), max_size=6))
def test_encoded_slash_is_refused_in_any_segment(parts: list[str]) -> None:
    with pytest.raises(NameInvalid):
        parse_target("/v2/" + "/".join([*parts, "a%2fb"]).replace("%%", "%"))


@pytest.mark.parametrize("segment", ["%", "%2", "%zz", "a%2", "%00", "%0a", "%7f", "%c3%a4", "%ff", "a%2Fb"])
def test_malformed_and_meaningless_escapes_are_refused(segment: str) -> None:
    with pytest.raises(NameInvalid):
        parse_target(f"/v2/{segment}/manifests/latest")


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2/?x=/manifests/", "/%762/"])
def test_root_of_the_api_is_a_ping(path: str) -> None:
    assert parse_target(path) == Ping()


@pytest.mark.parametrize(
    ("path", "repository"),
    [
        ("/", None),
        ("", None),
        ("*", None),
        ("/v1/_ping", None),
        ("/token?scope=x", None),
        ("v2/a/manifests/b", None),
        ("/v2//", None),
        ("/v2/_catalog", None),
        ("/v2/a", None),
        ("/v2/manifests/latest", None),
        ("/v2/a/tags/list", "a"),
        ("/v2/library/a/tags/list?n=3", "library/a"),
        ("/v2/a/blobs/uploads", "a"),
        ("/v2/a/blobs/uploads/", "a"),
        ("/v2/a/blobs/uploads/4f1e-9?_state=x", "a"),
        ("/v2/a/blobs/uploads/?mount=x&from=b", "a"),
        ("/v2/A/tags/list", None),
        ("/v2/" + "a" * 256 + "/tags/list", None),
    ],
)
def test_other_paths_have_the_repository_that_they_name(path: str, repository: str | None) -> None:
    assert parse_target(path) == OtherTarget(repository)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v2/a/blobs/manifests/latest", ManifestTarget("a/blobs", "latest")),
        ("/v2/a/manifests/manifests/latest", ManifestTarget("a/manifests", "latest")),
        ("/v2/a/manifests/uploads", ManifestTarget("a", "uploads")),
        (f"/v2/a/tags/blobs/{DIGEST}", BlobTarget("a/tags", DIGEST)),
    ],
)
def test_keywords_of_the_grammar_may_be_parts_of_names(path: str, target: object) -> None:
    assert parse_target(path) == target


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v2/A/manifests/latest", "NAME_INVALID"),
        ("/v2//manifests/latest", "NAME_INVALID"),
        ("/v2/a/../b/manifests/latest", "NAME_INVALID"),
        ("/v2/a/%2e%2e/manifests/latest", "NAME_INVALID"),
        ("/v2/" + "a" * 256 + "/manifests/latest", "NAME_INVALID"),
        ("/v2/a/manifests/", "MANIFEST_INVALID"),
        ("/v2/a/manifests/" + "t" * 129, "MANIFEST_INVALID"),
        ("/v2/a/manifests/sha256:1", "DIGEST_INVALID"),
        ("/v2/a/blobs/latest", "DIGEST_INVALID"),
        ("/v2/a/blobs/", "DIGEST_INVALID"),
    ],
)
def test_malformed_paths_are_refused_with_their_code(path: str, code: str) -> None:
    with pytest.raises(RegistryError) as caught:
        parse_target(path)
    assert (caught.value.status, caught.value.code) == (400, code)


@given(st.text(max_size=60) | st.text("/%v2ab:manifestbloks\udcff", max_size=60).map(lambda text: "/v2/" + text))
@example("/v2/a%41\udcff/manifests/latest")  # a raw byte above 127 in the request line arrives as a surrogate
def test_any_path_is_parsed_or_refused_with_a_registry_error(path: str) -> None:
    try:
        target = parse_target(path)
    except (NameInvalid, DigestInvalid, ManifestInvalid):
        return
    assert isinstance(target, Ping | ManifestTarget | BlobTarget | OtherTarget)


@given(st.text("/%v2abl:ikosmnefts.-_", max_size=60).map(lambda text: "/v2/" + text))
def test_repository_of_any_path_is_a_valid_name(path: str) -> None:
    try:
        target = parse_target(path)
    except RegistryError:
        return
    repository = getattr(target, "repository", None)
    assert repository is None or parse_name(repository) == repository


# -- ranges (RFC 9110 section 14) ------------------------------------------------------------------------------------

SIZE = 1000


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-499", (0, 500)),
        ("bytes=500-999", (500, 1000)),
        ("bytes=-500", (500, 1000)),
        ("bytes=500-", (500, 1000)),
        ("bytes=0-0", (0, 1)),
        ("bytes=-1", (999, 1000)),
        ("bytes=999-", (999, 1000)),
        ("bytes=0-", (0, 1000)),
        ("bytes=0-5000", (0, 1000)),
        ("bytes=-5000", (0, 1000)),
        ("bytes=007-009", (7, 10)),
        ("bytes=0-9 ", (0, 10)),
        ("bytes= \t0-9", (0, 10)),
        (f"bytes=0-{10**19 - 1}", (0, 1000)),
    ],
)
def test_satisfiable_range_is_limited_to_the_body(header: str, expected: tuple[int, int]) -> None:
    assert parse_range(header, SIZE) == ByteRange(*expected)


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=1000-1001", "bytes=5000-", "bytes=-0", f"bytes={10**18}-"])
def test_unsatisfiable_range_is_refused_with_the_size(header: str) -> None:
    with pytest.raises(RangeInvalid) as caught:
        parse_range(header, SIZE)
    assert caught.value.status == 416
    assert caught.value.headers() == {"Content-Range": "bytes */1000"}


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=9-5", "bytes=a-b", "bytes=0-9,20-29", "bytes=0-9,", "lines=0-9",
     "bytes 0-9", "bytes=0-9/1000", "bytes=--5", "bytes=0 - 9", "bytes=+1-9", "bytes=0x1-0x9", "bytes=1_0-20",
     "bytes=0-9\n", "bytes=\N{ARABIC-INDIC DIGIT ONE}-\N{ARABIC-INDIC DIGIT NINE}", "bytes=" + "9" * 5000 + "-"],
)  # fmt: skip
def test_header_other_than_one_byte_range_means_the_whole_body(header: str | None) -> None:
    assert parse_range(header, SIZE) is None


def test_range_of_an_empty_body_is_unsatisfiable() -> None:
    with pytest.raises(RangeInvalid):
        parse_range("bytes=0-", 0)


def test_suffix_of_an_empty_body_is_the_whole_body() -> None:
    """RFC 9110 section 14.1.2: a suffix range is satisfiable when its length is not 0, and 206 cannot say "0 bytes"."""
    assert parse_range("bytes=-5", 0) is None


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_closed_range_agrees_with_slicing(size: int, first: int, last: int) -> None:
    wanted = bytes(range(size))[first : last + 1]
    try:
        part = parse_range(f"bytes={first}-{last}", size)
    except RangeInvalid:
        assert (wanted, first <= last) == (b"", True)
    else:
        assert (part is None) == (last < first)
        assert part is None or bytes(range(size))[part.start : part.end] == wanted != b""


@given(st.text(max_size=30) | st.text("bytes=-0123456789, \t", max_size=30), st.integers(0, 1 << 40))
def test_range_of_any_header_is_within_the_body(header: str, size: int) -> None:
    try:
        part = parse_range(header, size)
    except RangeInvalid:
        return
    assert part is None or 0 <= part.start < part.end <= size


# -- referrers ---------------------------------------------------------------------------------------------------------


@given(NAMES, DIGESTS)
def test_referrers_path_is_parsed(name: str, digest: Digest) -> None:
    for path in (f"/v2/{name}/referrers/{digest}", f"/v2/{name}/referrers/{quote(digest)}?artifactType=a"):
        assert parse_target(path) == ReferrersTarget(name, digest)


@pytest.mark.parametrize("digest", ["latest", "sha256:abc", "", "sha256-" + "0" * 64])
def test_referrers_path_without_a_digest_is_refused(digest: str) -> None:
    with pytest.raises(DigestInvalid):
        parse_target(f"/v2/library/app/referrers/{digest}")


@given(DIGESTS, st.from_regex(r"(\.[A-Za-z0-9._-]{1,20})?", fullmatch=True))
def test_fallback_tag_has_its_subject(digest: Digest, suffix: str) -> None:
    assert subject_of_tag(fallback_tag(digest) + suffix) == digest


@pytest.mark.parametrize(
    "tag",
    ["latest", "sha256-a", f"sha256-{'0' * 63}", f"sha256-{'0' * 65}", f"sha256-{'A' * 64}", f"sha256-{'0' * 64}-"],
)
def test_other_tags_have_no_subject(tag: str) -> None:
    assert subject_of_tag(tag) is None


def test_fallback_tag_of_a_long_digest_is_truncated_as_specified() -> None:
    assert fallback_tag(Digest.parse("sha512:" + "ab" * 64)) == "sha512-" + "ab" * 32


@given(st.text(max_size=60) | st.text("ns=&artifactType%20+;\udcff", max_size=60))
def test_normalizing_a_referrers_query_twice_changes_nothing(query: str) -> None:
    once = referrers_query(query)
    assert referrers_query(once) == once
    assert "ns" not in [part.partition("=")[0] for part in once.split("&")]


@pytest.mark.parametrize(
    ("path", "api"), [("/v2", True), ("/v2/", True), ("/v2/a", True), ("/v20", False), ("/", False), ("/v1/v2/", False)]
)
def test_api_paths_begin_with_v2(path: str, api: bool) -> None:
    assert is_api_path(path) is api
