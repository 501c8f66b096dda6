"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest
from standin import Hub


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "e2e: drives real clients against the real product; slow, needs root")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty Docker Hub on loopback; the test fails when a client did what none may do."""
    with Hub() as running:
        yield running
        assert running.violations == []
