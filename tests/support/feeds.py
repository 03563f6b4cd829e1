"""Let apps that are served in this process hear nothing more."""

import asyncio

# Its memory is trusted for a moment only.
DEAF = {"TENANTS_REGISTRY_POLL_INTERVAL": 0.05, "TENANTS_REGISTRY_MAX_AGE": 3600, "TENANTS_SESSION_ASK_AFTER": 0.06}


def stop_feeds() -> None:
    """Stop reading what changes. What was read at the start stays."""
    for task in asyncio.all_tasks():
        if task.get_name() == "quart_tenants registry":
            task.cancel()
