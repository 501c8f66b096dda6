"""The README pages agree with the code."""

import re
from pathlib import Path

import pytest
import readmelib
from support.paths import REPOSITORY

PAGES = readmelib.pages()
FRONT_PAGE = REPOSITORY / "README.md"
SECURITY = REPOSITORY / ".github" / "SECURITY.md"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", readmelib.PARTS)
def test_generated_part_is_up_to_date(name: str) -> None:
    page, text = readmelib.regenerated(name)
    assert page.read_text() == text, "run scripts/readme"


def test_front_page_is_short() -> None:
    assert len(FRONT_PAGE.read_text().splitlines()) < 200


def test_every_test_that_the_security_page_names_exists() -> None:
    named = set(re.findall(r"`(?:[a-z0-9_]+/)*(test_[a-z0-9_]+)`", SECURITY.read_text()))
    assert len(named) > 20
    assert named - {path.stem for path in (REPOSITORY / "tests").rglob("test_*.py")} == set()


def test_every_module_that_the_architecture_page_names_exists() -> None:
    package = REPOSITORY / "addon" / "hubcache"
    prose = (REPOSITORY / "addon" / "README.md").read_text().partition("<!-- modules -->")[0]
    folders = "|".join(path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__")
    named = set(re.findall(rf"\b(?:{folders})/[a-z0-9_]+", prose))
    assert len(named) > 20
    assert {name for name in named if not (package / f"{name}.py").is_file()} == set()


def test_every_promise_of_the_last_soak_held() -> None:
    assert "**broken**" not in readmelib.soak()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    from hubcache.operate.metrics import Metrics
    from hubcache.operate.options import OPTIONS

    text = Metrics().render().decode()
    metrics = {name for name, _ in re.findall(r"# TYPE (hubcache_[a-z_]+?)(_total)? ", text)} | {
        f"{name}{part}" for name in re.findall(r"# TYPE (\S+)", text) for part in ("", "_bucket")
    }
    named = {name.rstrip("_") for name in re.findall(r"hubcache_[a-z_]+", page.read_text())} - metrics
    assert named <= {option.name for option in OPTIONS} | {"hubcache"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_linked_file_and_heading_exists(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
