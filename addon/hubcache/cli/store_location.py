"""Finds the directory of the store, in which the cache has its control socket.

The order is that of the cache itself: the command line, `hubcache.yaml`, mitmproxy's `config.yaml`, the default. The
options' own parser is in a module that imports mitmproxy, which takes longer than a whole command should.
"""

from pathlib import Path

import platformdirs

from .errors import UsageError

MITMPROXY_DIRECTORY = Path("~/.mitmproxy")
_CONFIG_FILE, _MITMPROXY_FILE = "hubcache.yaml", "config.yaml"
_NAMES = ("dir", "hubcache_dir")


def find_store(named: Path | None, config: Path | None = None) -> Path:
    """Return the absolute path of the store: `named`, else what a config file says, else the platform's default.

    `config` is a file to read in place of `~/.mitmproxy/hubcache.yaml`. Raises `UsageError` for an unreadable file.
    """
    if named is None:
        named = _configured(config)
    return (named or platformdirs.user_cache_path("hubcache")).expanduser().absolute()


def _configured(config: Path | None) -> Path | None:
    try:
        directory = MITMPROXY_DIRECTORY.expanduser()
    except RuntimeError:  # this user has no home directory
        directory = None
    others = {} if directory is None else _read(directory / _MITMPROXY_FILE)
    if config is None and isinstance(others.get("hubcache_config"), str) and others["hubcache_config"]:
        config = Path(str(others["hubcache_config"]))
    if config is not None:
        values = _read(config.expanduser(), is_required=True)
    else:
        values = {} if directory is None else _read(directory / _CONFIG_FILE)
    found = next((values[name] for name in _NAMES if values.get(name)), others.get("hubcache_dir"))
    return Path(found) if isinstance(found, str) and found else None


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
