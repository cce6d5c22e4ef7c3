"""Fixtures of the stack's tests."""

import pytest
from slice_tables import World, make_world


@pytest.fixture(scope="session")
def world() -> World:
    """Sixty studies, two members, three folds."""
    return make_world()
