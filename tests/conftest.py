"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from known_gaps import GAPS
from standin import Hub

settings.register_profile("suite", deadline=None, max_examples=60)  # no deadline: the machine may be busy
settings.load_profile("suite")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty Docker Hub on loopback; the test fails when a client did what none may do."""
    with Hub() as running:
        yield running
        assert running.violations == []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Known gaps run, but do not fail the run: they are listed by name, and nothing else is excused."""
    for item in items:
        if item.nodeid.partition("[")[0] in GAPS or item.path.name in GAPS:
            item.add_marker(pytest.mark.xfail(reason="a known gap", strict=False))
