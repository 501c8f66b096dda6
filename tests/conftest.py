"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from standin import Hub

settings.register_profile("suite", deadline=None, max_examples=60)  # no deadline: the machine may be busy
settings.load_profile("suite")


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty Docker Hub on loopback; the test fails when a client did what none may do."""
    with Hub() as running:
        yield running
        assert running.violations == []
