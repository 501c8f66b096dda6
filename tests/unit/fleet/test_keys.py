"""The keys of the objects in the bucket, and the format of small objects."""

import pytest
from hubcache.fleet import keys
from hubcache.fleet.values import decode_value, encode_value, number_field, text_field
from hubcache.oci.digest import Digest

DIGEST = Digest.of(b"content")


@pytest.mark.parametrize("private", [False, True])
def test_digest_of_a_blob_is_read_from_its_key(private: bool) -> None:
    key = keys.blob(DIGEST, private=private)
    assert key == f"{'private' if private else 'blob'}/sha256/{DIGEST.hex[:2]}/{DIGEST.hex}"
    assert keys.blob_digest(key) == DIGEST


@pytest.mark.parametrize(
    "key", ["blob/sha256/00/short", f"blob/md5/ab/{'ab' * 32}", f"blob/sha256/00/{'ab' * 32}", f"lease/blob/{DIGEST}"]
)
def test_other_keys_are_not_those_of_blobs(key: str) -> None:
    assert keys.blob_digest(key) is None


def test_no_key_is_a_directory_of_another() -> None:
    """`a/b` may be a repository with the tag `c`, and `a/b/c` a repository."""
    outer, inner = keys.tag("hub.example", "a/b", "c"), keys.tag("hub.example", "a/b/c", "d")
    assert not inner.startswith(f"{outer}/")
    outer, inner = keys.manifest("hub.example", "a/b", DIGEST), keys.manifest("hub.example", "a/b/c", DIGEST)
    assert not inner.startswith(f"{outer}/")


def test_value_is_read_as_it_was_written() -> None:
    fields = decode_value(encode_value({"node": "a", "at": 1.5, "flag": True}))
    assert fields is not None
    assert text_field(fields, "node") == "a"
    assert number_field(fields, "at") == 1.5
    assert (text_field(fields, "at"), number_field(fields, "node"), number_field(fields, "flag")) == (None, None, None)
    for number in ("1e999", "-1e999", "NaN", "-1", "1" + "0" * 400):
        decoded = decode_value(b'{"format": 1, "at": %s}' % number.encode())
        assert decoded is not None
        assert number_field(decoded, "at") is None


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"{}", b'{"format":2}', b"\xff"])
def test_value_of_another_format_is_absent(value: bytes) -> None:
    assert decode_value(value) is None


def test_requests_for_heartbeats_and_sweeps_are_not_of_pulls() -> None:
    of_pulls = [keys.blob(DIGEST), keys.manifest("hub", "a/b", DIGEST), keys.tag("hub", "a/b", "1"), "lease/tag/x"]
    others = [keys.node("one"), keys.popularity("one"), keys.SWEEP_STATE, keys.SECRET, keys.lease("sweep"), "probe/x"]
    assert all(map(keys.is_of_pulls, of_pulls))
    assert not any(map(keys.is_of_pulls, others))
