"""Environment variables and files of AWS clients."""

from pathlib import Path

import pytest
from hubcache.fleet.aws_settings import AwsKeys, read_aws_settings
from hubcache.oci.errors import ConfigError

CREDENTIALS = """
[default]
aws_access_key_id = AKDEFAULT
aws_secret_access_key = file-secret%x
[other]
aws_access_key_id = AKOTHER
aws_secret_access_key = other-secret
aws_session_token = other-token
"""
CONFIG = """
[default]
region = eu-west-1
s3 =
  max_concurrent_requests = 20
[profile other]
region = eu-west-2
endpoint_url = https://s3.example.com
ca_bundle = /etc/ca.pem
aws_access_key_id = AKCONFIG
aws_secret_access_key = config-secret
[profile sso]
sso_session = work
"""
KEYS = {"AWS_ACCESS_KEY_ID": "AKENV", "AWS_SECRET_ACCESS_KEY": "env-secret"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    directory = tmp_path / ".aws"
    directory.mkdir()
    (directory / "credentials").write_text(CREDENTIALS)
    (directory / "config").write_text(CONFIG)
    return tmp_path


def test_variables_have_precedence_over_files(home: Path) -> None:
    variables = {"AWS_SESSION_TOKEN": "env-token", "AWS_REGION": "us-west-2", "AWS_DEFAULT_REGION": "us-east-2"}
    found = read_aws_settings(KEYS | variables, home)
    assert found.keys == AwsKeys("AKENV", "env-secret", "env-token")
    assert found.region == "us-west-2"


def test_default_profile_is_read_from_both_files(home: Path) -> None:
    found = read_aws_settings({}, home)
    assert found.keys == AwsKeys("AKDEFAULT", "file-secret%x", None)
    assert found.region == "eu-west-1"
    assert found.endpoints == ()


def test_named_profile_is_read_and_credentials_file_has_precedence(home: Path) -> None:
    found = read_aws_settings({"AWS_PROFILE": "other"}, home)
    assert found.keys == AwsKeys("AKOTHER", "other-secret", "other-token")
    assert found.region == "eu-west-2"
    assert found.endpoints == ("https://s3.example.com",)
    assert found.ca_bundle == "/etc/ca.pem"


def test_other_files_are_read_where_variables_name_them(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("[default]\naws_access_key_id=AKELSE\naws_secret_access_key=s\n")
    (home / "mine").write_text("[default]\nregion=eu-north-1\n")
    environment = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "elsewhere"), "AWS_CONFIG_FILE": "~/mine"}
    found = read_aws_settings(environment, home)
    assert found.keys == AwsKeys("AKELSE", "s", None)
    assert found.region == "eu-north-1"


def test_nothing_is_needed(tmp_path: Path) -> None:
    found = read_aws_settings({}, tmp_path)
    assert (found.keys, found.region, found.endpoints, found.ca_bundle) == (None, None, (), None)


def test_web_identity_has_precedence_over_files(home: Path) -> None:
    assert read_aws_settings({"AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}, home).keys is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"AWS_ENDPOINT_URL": "http://a:1"}, ("http://a:1",)),
        ({"AWS_ENDPOINT_URL": "http://a:1", "AWS_ENDPOINT_URL_S3": "http://b:2"}, ("http://b:2",)),
        ({"AWS_ENDPOINT_URL": " http://a:1, http://b:2,"}, ("http://a:1", "http://b:2")),
    ],
)
def test_endpoints_are_a_list(tmp_path: Path, environment: dict[str, str], expected: tuple[str, ...]) -> None:
    assert read_aws_settings(environment, tmp_path).endpoints == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKENV"}, "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"),
        ({"AWS_SECRET_ACCESS_KEY": "env-secret"}, "AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not"),
        (KEYS | {"AWS_SECRET_ACCESS_KEY": "env-secret\nx"}, "AWS_SECRET_ACCESS_KEY contains"),
        (KEYS | {"AWS_SESSION_TOKEN": "env-sécret"}, "AWS_SESSION_TOKEN contains"),
        ({"AWS_PROFILE": "none"}, "profile 'none' of AWS_PROFILE is neither in"),
        ({"AWS_PROFILE": "sso"}, "profile 'sso' of AWS_PROFILE has no aws_access_key_id"),
        ({"AWS_REGION": "eu west"}, "region 'eu west' is not a name"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(home: Path, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_aws_settings(environment, home)
    assert "env-s" not in str(caught.value)


def test_white_space_around_a_variable_is_ignored(tmp_path: Path) -> None:
    environment = {"AWS_ACCESS_KEY_ID": "AKENV\n", "AWS_SECRET_ACCESS_KEY": " env-secret\n"}
    assert read_aws_settings(environment, tmp_path).keys == AwsKeys("AKENV", "env-secret", None)


@pytest.mark.parametrize(
    "content", [b"aws_secret_access_key = file-secret\n", b"[default]\nfile-secret\n", b"\xff\xfe"]
)
def test_file_that_is_not_understood_is_not_quoted(home: Path, content: bytes) -> None:
    (home / ".aws/credentials").write_bytes(content)
    with pytest.raises(ConfigError, match=r"/\.aws/credentials is not a file of sections") as caught:
        read_aws_settings({}, home)
    assert "file-secret" not in str(caught.value)


def test_file_that_cannot_be_read_is_named(home: Path) -> None:
    (home / ".aws/config").unlink()
    (home / ".aws/config").mkdir()
    with pytest.raises(ConfigError, match=r"/\.aws/config cannot be read: Is a directory"):
        read_aws_settings({}, home)
