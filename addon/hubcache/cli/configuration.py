"""Finds values of options without starting the cache: the directory of the store, and the registries.

The order is that of the cache itself: the command line, the environment, `hubcache.yaml`, mitmproxy's `config.yaml`.
The module that parses options for the cache imports mitmproxy, which takes longer than a whole command should.
"""

import os
from pathlib import Path

import platformdirs

from .errors import UsageError

_PREFIX = "hubcache_"
_MITMPROXY_DIRECTORY = Path("~/.mitmproxy")
_CONFIG_FILE, _MITMPROXY_FILE = "hubcache.yaml", "config.yaml"


def find_store(named: Path | None) -> Path:
    """Return the absolute path of the store: `named`, else the configured one, else the platform's default.

    Raises `UsageError` for a config file that cannot be read.
    """
    if named is None:
        found = configured("dir")
        named = Path(found) if isinstance(found, str) and found else platformdirs.user_cache_path("hubcache")
    return named.expanduser().absolute()


def configured(name: str, config: Path | None = None) -> object:
    """Return the value of the option `hubcache_NAME` from the environment or a config file, None if it is not set.

    `config` is the file to read in place of `hubcache.yaml`. Raises `UsageError` for one that cannot be read.
    """
    if value := os.environ.get(f"{_PREFIX}{name}".upper(), "").strip():
        return value
    directory = _mitmproxy_directory()
    others = {} if directory is None else _read(directory / _MITMPROXY_FILE)
    config = config or config_file(others)
    if config is not None:
        values = _read(config, is_required=True)
    else:
        values = {} if directory is None else _read(directory / _CONFIG_FILE)
    return values.get(name, values.get(_PREFIX + name, others.get(_PREFIX + name)))


def config_file(others: dict[str, object]) -> Path | None:
    """Return the file that the option `hubcache_config` names, in the environment or in mitmproxy's own options."""
    named = os.environ.get("HUBCACHE_CONFIG", "").strip() or others.get("hubcache_config")
    return Path(named).expanduser().absolute() if isinstance(named, str) and named else None


def _mitmproxy_directory() -> Path | None:
    try:
        return _MITMPROXY_DIRECTORY.expanduser()
    except RuntimeError:  # this user has no home directory
        return None


def _read(path: Path, *, is_required: bool = False) -> dict[str, object]:
    """Return the values in a YAML file, none if it does not exist and need not."""
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        if not is_required:
            return {}
        raise UsageError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}; name the store with --dir") from error
    from ruamel.yaml import YAML  # only here: most users have no file, and the import takes a tenth of a second
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise UsageError(f"{path} is not valid YAML; name the store with --dir") from error
    return document if isinstance(document, dict) else {}
