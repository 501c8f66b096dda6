"""Opens the bucket that an option names, with endpoint and credentials from the environment and files."""

from __future__ import annotations  # obstore has the names of its types in stub files only

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from ..oci.errors import ConfigError
from .aws_settings import AwsSettings, read_aws_settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

_CONNECT = timedelta(seconds=3)
_READ = timedelta(seconds=8)
"""Longest time without a byte of a response.

Measured: a gateway of SeaweedFS answers racing conditional writes of an object one after the other, and polls its lock
once a second. The last of 32 is refused after 6 seconds.
"""

_RETRIES: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=5)}
"""Repeats a request that failed at once, and not one that timed out: then the cache goes on without the bucket."""

_UPLOAD_READ = timedelta(seconds=60)
"""This time includes sending the request's body, which is up to 8 MiB and shares the line with other transfers."""

_UPLOAD_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(minutes=3)}

_TOTAL = timedelta(days=1)
"""Longest duration of a request: as good as none, since the time-outs above end a transfer that does not advance."""

_BUCKET = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]+)((?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)/?")
_PORTS = {"http": 80, "https": 443}
_AZURE_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_OTHER_CREDENTIALS = (
    *("AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_METADATA_ENDPOINT"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)
"""Variables of other sources of credentials, which the client itself reads."""

_SECRET_NAME = re.compile(r"(AWS|GOOGLE|AZURE)_.*(KEY|SECRET|TOKEN|SAS|PASSWORD)")


@dataclass(frozen=True, slots=True)
class BucketStore:
    """One endpoint of a bucket: `host` and `port` are where requests go, so far as that is known without a request.

    Uploads have a client of its own, since only their time-outs must allow for a large body of the request.
    """

    host: str
    port: int
    requests: ObjectStore
    uploads: ObjectStore


@dataclass(frozen=True, slots=True)
class _Name:
    scheme: str
    bucket: str
    prefix: str | None


def open_bucket_stores(url: str, environment: Mapping[str, str], home: Path) -> tuple[BucketStore, ...]:
    """Return the clients of a bucket (`s3://NAME/PREFIX`, `gs://`, `az://`), one for each endpoint; sends no request.

    `environment` must be that of this process, because the clients read it too; `home` is the user's directory. A node
    uses the first endpoint. There are several when AWS_ENDPOINT_URL is a list, separated by commas.
    Raises `ConfigError` in one line, without credentials.
    """
    found = _BUCKET.fullmatch(url.strip())
    if found is None:
        raise ConfigError("hubcache_bucket: expected a bucket such as s3://NAME, gs://NAME/PREFIX or az://NAME")
    name = _Name(found[1], found[2], found[3].strip("/") or None)
    secrets = [value for key, value in environment.items() if _SECRET_NAME.fullmatch(key)]
    try:
        match name.scheme:
            case "s3":
                settings = read_aws_settings(environment, home)
                secrets += settings.secrets
                _check_credentials(settings, environment)
                return tuple(_open_s3(name, settings, endpoint) for endpoint in settings.endpoints or ("",))
            case "gs":
                return (_open_gcs(name, environment.get("GOOGLE_BASE_URL", "")),)
            case _:
                endpoint = next(filter(None, map(environment.get, _AZURE_ENDPOINTS)), "")
                return (_open_azure(name, endpoint, environment.get("AZURE_STORAGE_ACCOUNT_NAME", "")),)
    except (BaseError, ConfigError) as error:
        reason = _without(secrets, _first_line(error))
        raise ConfigError(f"hubcache_bucket: {url.strip()}: {reason}") from None  # the cause may contain credentials


def _check_credentials(settings: AwsSettings, environment: Mapping[str, str]) -> None:
    """Raise `ConfigError` when there are no credentials for a bucket outside of AWS, where no instance has any."""
    hosts = [_split_endpoint(endpoint)[0] for endpoint in settings.endpoints]
    is_outside = bool(hosts) and not any(host.endswith((".amazonaws.com", ".amazonaws.com.cn")) for host in hosts)
    if is_outside and settings.keys is None and not any(map(environment.get, _OTHER_CREDENTIALS)):
        raise ConfigError("no credentials; expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials")


def _open_s3(name: _Name, settings: AwsSettings, endpoint: str) -> BucketStore:
    config: S3Config = {}
    if settings.keys is not None:
        config["access_key_id"] = settings.keys.access_key
        config["secret_access_key"] = settings.keys.secret_key
        if settings.keys.token:
            config["session_token"] = settings.keys.token
    if settings.region is not None:
        config["region"] = settings.region
    if endpoint:
        # The client reads AWS_ENDPOINT_URL_S3 too, and prefers it: the list in it would not be a URL.
        config["endpoint"] = config["aws_endpoint_url_s3"] = endpoint.rstrip("/")

    def opened(options: ClientConfig, retries: RetryConfig) -> ObjectStore:
        if settings.ca_bundle is not None:
            options["root_certificate"] = _read_certificates(settings.ca_bundle)
        return S3Store(name.bucket, prefix=name.prefix, config=config, client_options=options, retry_config=retries)

    return _both(endpoint or f"https://s3.{settings.region or 'us-east-1'}.amazonaws.com", opened)


def _open_gcs(name: _Name, endpoint: str) -> BucketStore:
    def opened(options: ClientConfig, retries: RetryConfig) -> ObjectStore:
        return GCSStore(name.bucket, prefix=name.prefix, client_options=options, retry_config=retries)

    return _both(endpoint or "https://storage.googleapis.com", opened)


def _open_azure(name: _Name, endpoint: str, account: str) -> BucketStore:
    def opened(options: ClientConfig, retries: RetryConfig) -> ObjectStore:
        return AzureStore(name.bucket, prefix=name.prefix, client_options=options, retry_config=retries)

    return _both(endpoint or f"https://{account or 'account'}.blob.core.windows.net", opened)


def _both(endpoint: str, opened: Callable[[ClientConfig, RetryConfig], ObjectStore]) -> BucketStore:
    """Open the two clients of an endpoint; plain HTTP only where the endpoint is `http://`."""
    host, port, is_plain = _split_endpoint(endpoint)
    common: ClientConfig = {"allow_http": is_plain, "connect_timeout": _CONNECT, "timeout": _TOTAL}
    return BucketStore(
        host,
        port,
        opened({**common, "read_timeout": _READ}, _RETRIES),
        opened({**common, "read_timeout": _UPLOAD_READ}, _UPLOAD_RETRIES),
    )


def _split_endpoint(endpoint: str) -> tuple[str, int, bool]:
    """Return host, port and whether the endpoint is plain HTTP.

    The client's library would abort for some texts that are no URLs, and would write a password in one into logs.
    """
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the endpoint contains a user name; expected only http(s)://HOST:PORT")
    is_url = re.fullmatch(r"https?://[A-Za-z0-9._\[\]:-]+(?:/[A-Za-z0-9._~/-]*)?", endpoint) is not None
    if not is_url or not parts.hostname or port == 0:
        raise ConfigError(f"the endpoint {endpoint!r} is not a URL such as https://HOST:PORT")
    return parts.hostname, port or _PORTS[parts.scheme], parts.scheme == "http"


def _read_certificates(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"AWS_CA_BUNDLE: {path} cannot be read: {error.strerror}") from error


def _first_line(error: Exception) -> str:
    """Return what an error says. Errors of parsers quote a text that they did not expect."""
    line = (str(error) or type(error).__name__).splitlines()[0].strip()
    return re.sub('string ".*"', "a string", line)


def _without(secrets: Iterable[str], text: str) -> str:
    """Return a text in which credentials are replaced; a word of three letters would be found in all texts."""
    for secret in sorted({secret.strip() for secret in secrets}, key=len, reverse=True):
        if len(secret) > 3:
            text = text.replace(secret, "***")
    return text
