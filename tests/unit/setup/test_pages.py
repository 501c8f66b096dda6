"""The set-up page: its recipes are valid in their formats and carry this cache's addresses."""

import json
import re
import tomllib

import pytest
from hubcache.setup.pages import SOURCE, Addresses, attach_script, setup_page
from ruamel.yaml import YAML  # a dependency of mitmproxy
from support.recipes import Recipe, recipes

CACHE = Addresses("cache.lan", 5001, 3128)


RECIPES = list(recipes(CACHE).values())


def test_every_block_of_the_page_is_a_recipe() -> None:
    assert len(RECIPES) == SOURCE.read_text().count("\n```") // 2


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_is_valid_in_its_format(recipe: Recipe) -> None:
    assert "CACHE" not in recipe.text
    if recipe.language == "toml":
        assert tomllib.loads(recipe.text)
    elif recipe.language == "json":
        assert json.loads(recipe.text)
    elif recipe.language == "yaml":
        assert YAML(typ="safe").load(recipe.text)
    else:
        assert recipe.language in ("sh", "ini")


@pytest.mark.parametrize(
    "recipe", [each for each in RECIPES if each.name != "proxy-systemd"], ids=lambda each: each.name
)
def test_recipe_names_the_mirror_of_this_cache(recipe: Recipe) -> None:
    if recipe.name not in ("containerd-1", "containerd-2", "kind"):  # these name a directory
        assert "cache.lan:5001" in recipe.text


def test_page_is_html_with_this_caches_addresses() -> None:
    page = setup_page(CACHE).decode()
    assert page.startswith("<!doctype html>")
    assert "http://cache.lan:3128" in page
    assert "CACHE:" not in page
    assert "CACHE_MAX_SIZE" in page
    assert "Replace" not in page
    assert "repository -->" not in page
    assert re.search(r"(?:src|href)=\"?https?:", page) is None, "nothing is loaded from elsewhere"


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("cache.lan:5000", "cache.lan"),
        ("10.1.2.3", "10.1.2.3"),
        ("[fd00::1]:5000", "[fd00::1]"),
        ("", "CACHE"),
        ("evil'; rm -rf /", "CACHE"),
        ("$(id)", "CACHE"),
        ("a b", "CACHE"),
        ("x" * 300, "CACHE"),
        ("<script>", "CACHE"),
    ],
)
def test_malformed_host_never_reaches_page_or_script(authority: str, host: str) -> None:
    addresses = Addresses.of(authority, 5000, 8080)
    assert addresses.host == host
    assert f"mirror='{host}:5000'" in attach_script(addresses).decode()
