"""Answer the probes of a proxy or an orchestrator, on every host."""

from quart import Quart
from werkzeug.routing import BaseConverter

from quart_tenants.web.routing.host_routing import ANY_HOST
from quart_tenants.web.state import TenantState, get_state

ALIVE_PATH = "/healthz"
"""200 while the process runs."""

READY_PATH = "/readyz"
"""200 while the database answers and holds the registry at the right version, and 503 otherwise."""

LAST_HOST = ANY_HOST.replace("any", "last")
"""Every host, as `ANY_HOST`, but after all routes of the app."""


def add_probes(app: Quart, state: TenantState) -> None:
    """Let *app* answer both paths on every host, unless `TENANTS_PROBES` says no. The app's own routes go first."""
    app.url_map.converters["last_host"] = _LastHost
    if state.settings.probes:
        app.add_url_rule(ALIVE_PATH, "quart_tenants_healthz", _say_alive, host=LAST_HOST)
        app.add_url_rule(READY_PATH, "quart_tenants_readyz", _say_ready, host=LAST_HOST)


class _LastHost(BaseConverter):
    regex = ".*"
    # Werkzeug tries the hosts with a greater weight later. All others have 100.
    weight = 1000


async def _say_alive() -> dict[str, str]:
    return {"status": "ok"}


async def _say_ready() -> dict[str, str]:
    """Say that this worker can serve.

    Raises:
        DatabaseUnavailableError: The database does not answer.
        RegistryNotReadyError: It holds no registry, or one of another version.
    """
    await get_state().registry.check()
    return {"status": "ready"}
