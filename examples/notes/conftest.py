"""Tell the test kit how the app is made."""

from collections.abc import Callable

import notes
import pytest
from quart import Quart


@pytest.fixture(scope="session")
def tenants_app_factory() -> Callable[[], Quart]:
    """Return the function that makes the app."""
    return notes.create_app
