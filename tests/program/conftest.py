"""Fixtures of the program's tests."""

from collections.abc import Iterator

import pytest
from support.program import Program


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    """Fork the programs of these tests, see `support.forked_mitmdump`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "may_fork", True)
        yield
