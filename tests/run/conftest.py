"""Fixtures for tests of whole runs."""

import pytest

from tests.run import small


@pytest.fixture
def tiny(tmp_path):
    """Return a config that trains in a second: two phases, a network of two convolutions."""
    return small.config(tmp_path / "run")
