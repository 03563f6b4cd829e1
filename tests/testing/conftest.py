"""The test kit on the reference app, as an adopter's conftest.py names its own."""

from collections.abc import Callable

import pytest
from quart import Quart

from quart_tenants.app import create_app


@pytest.fixture(scope="session")
def tenants_app_factory() -> Callable[[], Quart]:
    """Test the reference app."""
    return create_app
