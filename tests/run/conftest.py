"""Fixtures of tests of whole runs."""

import pytest

from tests.run import small


@pytest.fixture
def tiny(tmp_path):
    """A config that trains in a second: two phases of a network of two convolutions."""
    return small.config(tmp_path / "run")
