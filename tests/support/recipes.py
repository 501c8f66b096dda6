"""The recipes of the set-up page, as a user copies them."""

import re
from typing import NamedTuple

from hubcache.setup.pages import SOURCE, Addresses, filled_in


class Recipe(NamedTuple):
    """A block of the page: its language, its name, and its text with a cache's addresses."""

    language: str
    name: str
    text: str


def recipes(addresses: Addresses) -> dict[str, Recipe]:
    """Return all recipes by name."""
    blocks = re.finditer(r"^```(\w+) id=(\S+).*\n((?:.*\n)*?)```$", SOURCE.read_text(), re.MULTILINE)
    found = [Recipe(block[1], block[2], filled_in(block[3], addresses)) for block in blocks]
    by_name = {recipe.name: recipe for recipe in found}
    assert len(by_name) == len(found), "two recipes have the same name"
    return by_name
