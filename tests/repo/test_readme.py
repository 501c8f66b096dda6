"""README.md says what the code does."""

import re

import readmelib


def test_generated_parts_are_up_to_date() -> None:
    text = readmelib.README.read_text()
    assert readmelib.generated(text) == text, "run scripts/readme"


SECURITY = readmelib.ROOT / ".github" / "SECURITY.md"


def test_every_test_that_the_security_page_names_exists() -> None:
    named = set(re.findall(r"`(?:[a-z0-9_]+/)*(test_[a-z0-9_]+)`", SECURITY.read_text()))
    assert len(named) > 20
    assert named - {path.stem for path in (readmelib.ROOT / "tests").rglob("test_*.py")} == set()


def test_every_promise_of_the_last_soak_held() -> None:
    assert "**broken**" not in readmelib.soak()


def test_every_option_named_in_the_text_exists() -> None:
    from hubcache.operate.option_table import OPTIONS

    named = set(re.findall(r"hubcache_[a-z_]+", readmelib.README.read_text() + SECURITY.read_text()))
    metrics = {name for name in named if re.search(rf"`{name}(\{{|`)", readmelib.README.read_text()) is None}
    assert named - metrics <= {option.name for option in OPTIONS} | {"hubcache_ratelimit_remaining"}


def test_files_that_are_linked_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", readmelib.README.read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (readmelib.ROOT / link).exists(), link
