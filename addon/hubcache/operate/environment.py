"""Reads option values from environment variables, with which containers and services are usually configured."""

import re
from collections.abc import Container, Mapping

from .options import OPTIONS


def variables(environment: Mapping[str, str], fixed: Container[str] = ()) -> dict[str, list[str]]:
    """Return the values that the environment has for options, by the options' names.

    The variable of `hubcache_size` is `HUBCACHE_SIZE`. Several values are separated by commas or white space. An empty
    variable counts as unset. Names in `fixed` are omitted. Other variables with the prefix are ignored: Kubernetes
    sets `HUBCACHE_PORT` and more in the namespace of a service called hubcache.
    """
    found = {}
    for each in OPTIONS:
        value = environment.get(each.name.upper(), "").strip()
        if value and each.name not in fixed:
            found[each.name] = re.split(r"[,\s]+", value) if isinstance(each.default, list) else [value]
    return found


def assignments(values: Mapping[str, list[str]]) -> list[str]:
    """Return values as mitmproxy's options are set by text: `NAME=VALUE`, once for each value."""
    return [f"{name}={value}" for name, several in values.items() for value in several]
