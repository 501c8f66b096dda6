"""The recipes of the set-up page and of other pages, as a user copies them."""

import re
from pathlib import Path
from typing import NamedTuple

from hubcache.setup.pages import SOURCE, Addresses, filled_in

EXAMPLE = Addresses("cache.example", 5000, 8080)


class Recipe(NamedTuple):
    """A block of the page: its language, its name, and its text with a cache's addresses."""

    language: str
    name: str
    text: str


def recipes(addresses: Addresses = EXAMPLE, page: Path = SOURCE) -> dict[str, Recipe]:
    """Return all recipes of a page by name."""
    blocks = re.finditer(r"^```(\w+) id=(\S+).*\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)
    found = [Recipe(block[1], block[2], filled_in(block[3], addresses)) for block in blocks]
    by_name = {recipe.name: recipe for recipe in found}
    assert len(by_name) == len(found), "two recipes have the same name"
    return by_name
