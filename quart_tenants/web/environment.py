"""Read settings from the environment, where their names begin with `QUART_`."""

from typing import Any

from quart.config import Config

from quart_tenants.settings import PREFIX

# Quart's own, without which there are no sessions.
_SECRETS = ("SECRET_KEY", "SECRET_KEY_FALLBACKS")


def read_environment() -> dict[str, Any]:
    """Return the `TENANTS_*` keys and the secret keys by their names in `app.config`. Values are read as JSON."""
    config = Config("")
    config.from_prefixed_env()
    return {name: value for name, value in config.items() if name.startswith(PREFIX) or name in _SECRETS}
