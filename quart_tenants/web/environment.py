"""Read `TENANTS_*` settings from the environment, where they are named `QUART_TENANTS_*`."""

from typing import Any

from quart.config import Config

from quart_tenants.settings import PREFIX


def read_environment() -> dict[str, Any]:
    """Return the settings found, by their `TENANTS_*` key. Values are read as JSON where they are JSON."""
    config = Config("")
    config.from_prefixed_env(f"QUART_{PREFIX.rstrip('_')}")
    return {PREFIX + name: value for name, value in config.items()}
