"""Let apps that are served in this process hear nothing more."""

import asyncio

import pytest
from quart import Quart

# The feed reads at the start, and then not within the time of a test. What the database answers is good for minutes.
RARE_NEWS = {
    "TENANTS_REGISTRY_POLL_INTERVAL": 60,
    "TENANTS_SESSION_ASK_AFTER": 120,
    "TENANTS_REGISTRY_MAX_AGE": 3600,
}
_TOO_OLD = 600.0  # seconds


def stop_feeds() -> None:
    """Stop reading what changes. What was read at the start stays."""
    for task in asyncio.all_tasks():
        if task.get_name() == "quart_tenants registry":
            task.cancel()


def let_news_be_old(app: Quart, patch: pytest.MonkeyPatch) -> None:
    """Let it be ten minutes since *app* has read what changed: too long to trust it about sessions."""
    patch.setattr(app.extensions["quart_tenants"].registry, "get_age", lambda: _TOO_OLD)
