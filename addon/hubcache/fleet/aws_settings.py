"""Reads the settings of AWS clients: environment variables, and a profile of `~/.aws/credentials` and `~/.aws/config`.

Source: "AWS SDKs and Tools Reference Guide", settings reference. Sources of credentials that the client of the bucket
finds itself (web identity, containers, instances) are left to it.
"""

import re
from collections.abc import Mapping
from configparser import Error, RawConfigParser
from dataclasses import dataclass
from pathlib import Path

from ..oci.errors import ConfigError

ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")

_WEB_IDENTITY = "AWS_WEB_IDENTITY_TOKEN_FILE"
_REGION = re.compile(r"[A-Za-z0-9-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class AwsKeys:
    """Credentials that do not change."""

    access_key: str
    secret_key: str
    token: str | None


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """Settings of a client. `keys` is None when the client itself must find credentials; `endpoints` is empty for AWS.

    Several endpoints are gateways to the same bucket.
    """

    keys: AwsKeys | None
    region: str | None
    endpoints: tuple[str, ...]
    ca_bundle: str | None

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that no message may contain."""
        if self.keys is None:
            return ()
        return tuple(filter(None, (self.keys.access_key, self.keys.secret_key, self.keys.token)))


def read_aws_settings(environment: Mapping[str, str], home: Path) -> AwsSettings:
    """Return the settings; `home` is the user's directory.

    Raises `ConfigError` for settings that cannot be used; its text contains no credential.
    """
    profile = _read_profile(environment, home)
    endpoints = _first(environment, ENDPOINT_VARIABLES) or profile.get("endpoint_url", "")
    region = _first(environment, REGION_VARIABLES) or profile.get("region") or None
    if region is not None and not _REGION.fullmatch(region):
        raise ConfigError(f"the region {region!r} is not a name such as us-east-1")
    return AwsSettings(
        keys=_keys_of_environment(environment) or _keys_of_profile(profile, environment),
        region=region,
        endpoints=tuple(part.strip() for part in endpoints.split(",") if part.strip()),
        ca_bundle=_first(environment, ["AWS_CA_BUNDLE"]) or profile.get("ca_bundle") or None,
    )


def _keys_of_environment(environment: Mapping[str, str]) -> AwsKeys | None:
    return _keys(
        {
            name: value
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
            if (value := environment.get(name, "").strip())
        },
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    )


def _keys_of_profile(profile: Mapping[str, str], environment: Mapping[str, str]) -> AwsKeys | None:
    keys = _keys(profile, "aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    name = environment.get("AWS_PROFILE", "")
    if keys is None and name and not environment.get(_WEB_IDENTITY):
        raise ConfigError(
            f"the profile {name!r} of AWS_PROFILE has no aws_access_key_id; expected a profile with keys, since roles, "
            "SSO and credential_process of a profile are not supported"
        )
    return keys if not environment.get(_WEB_IDENTITY) else None


def _keys(values: Mapping[str, str], access_name: str, secret_name: str, token_name: str) -> AwsKeys | None:
    access, secret, token = values.get(access_name), values.get(secret_name), values.get(token_name)
    if not access and not secret:
        return None
    if not access or not secret:
        there, missing = (access_name, secret_name) if access else (secret_name, access_name)
        raise ConfigError(f"{there} is set and {missing} is not; expected both")
    for name, value in ((access_name, access), (secret_name, secret), (token_name, token or "-")):
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigError(f"{name} contains a space or a character that is not ASCII")
    return AwsKeys(access, secret, token)


def _read_profile(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return the settings of the profile in both files; those of the credentials file have precedence."""
    name = environment.get("AWS_PROFILE") or "default"
    config = _read_file(_path(environment, "AWS_CONFIG_FILE", home / ".aws/config"))
    credentials = _read_file(_path(environment, "AWS_SHARED_CREDENTIALS_FILE", home / ".aws/credentials"))
    sections = [
        dict(file[section])
        for file, section in ((config, name if name == "default" else f"profile {name}"), (credentials, name))
        if file.has_section(section)
    ]
    if not sections and environment.get("AWS_PROFILE"):
        raise ConfigError(f"the profile {name!r} of AWS_PROFILE is neither in ~/.aws/credentials nor in ~/.aws/config")
    return {setting: value for section in sections for setting, value in section.items()}


def _read_file(path: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False, default_section="")
    try:
        parser.read_string(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (Error, UnicodeDecodeError) as error:  # its text contains the line, which may be a credential
        raise ConfigError(f"{path} is not a file of sections and settings as AWS describes it") from error
    return parser


def _path(environment: Mapping[str, str], name: str, default: Path) -> Path:
    value = environment.get(name)
    if not value:
        return default
    return default.parent.parent / value[2:] if value.startswith("~/") else Path(value)


def _first(environment: Mapping[str, str], names: tuple[str, ...] | list[str]) -> str:
    """Return the value of the first variable that is set and not empty."""
    return next((value for name in names if (value := environment.get(name, "").strip())), "")
