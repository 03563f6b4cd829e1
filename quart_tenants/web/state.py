"""Hold what the extension keeps for one app: settings always, database and registry while the app is serving."""

import os
from contextlib import AbstractAsyncContextManager
from typing import Any

from quart import Quart, current_app, has_app_context

from quart_tenants.domain import Domain
from quart_tenants.errors import NoTenantError, SettingError
from quart_tenants.measures.counts import Measures
from quart_tenants.measures.stats import Stats
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.messages.message_hub import MessageHub
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.settings import PREFIX, Settings
from quart_tenants.tenant import Slug
from quart_tenants.web.lifecycle_hooks import LifecycleHooks
from quart_tenants.web.login_gates import LoginGates

EXTENSION_NAME = "quart_tenants"
"""The key in `app.extensions`."""

# The figures of a worker have an end, whatever happens.
_LISTED_BLOCKS = 50


class TenantState(LifecycleHooks):
    """The extension as the other modules of `web/` see it. They must not import the extension, which imports them.

    Attributes:
        settings: The checked settings.
        measures: What this worker counts.
        has_metrics_port: Whether the server answers Prometheus, as `serve` does where `TENANTS_METRICS_BIND` is set.
        login_gates: Limits how many login attempts for one account run at a time. Exists while the app is serving.
        messages: Hands messages to the subscribers in this worker. Exists while the app is serving.
        sign_in_endpoint: Where `login_required` sends a browser whose visitor is not logged in; None for nowhere.
    """

    settings: Settings
    measures: Measures
    login_gates: LoginGates
    messages: MessageHub

    def __init__(self) -> None:
        super().__init__()
        self.measures = Measures()
        self.has_metrics_port = False
        self.sign_in_endpoint: str | None = None
        # The values from which the settings were made.
        self._read_values: dict[str, object] = {}
        self._database: Database | None = None
        self._registry: Registry | None = None

    @property
    def database(self) -> Database:
        """The connection pool of this worker.

        Raises:
            RuntimeError: The app is not serving.
        """
        if self._database is None:
            raise _not_running()
        return self._database

    @property
    def registry(self) -> Registry:
        """The tenants that this worker knows.

        Raises:
            RuntimeError: The app is not serving.
        """
        if self._registry is None:
            raise _not_running()
        return self._registry

    def get_stats(self) -> Stats:
        """Return the figures of this worker: requests, connections, blocks, tenants, logins. Costs no query.

        Raises:
            RuntimeError: The app is not serving.
        """
        measures = self.measures
        tenants, others = measures.tenants.show()
        return Stats(
            pid=os.getpid(),
            uptime=measures.get_uptime(),
            requests=measures.show_requests(),
            pool=self.database.show_pool(),
            blocks=measures.show_blocks(),
            registry=self.registry.show(),
            sessions=measures.show_sessions(),
            logins=measures.show_logins(),
            tenants=tenants,
            other_tenants=others,
            open_blocks=tuple(measures.list_open_blocks()[:_LISTED_BLOCKS]),
            figures=measures.collect_figures(),
        )

    def refuse_late_settings(self, app: Quart) -> None:
        """Make sure that no `TENANTS_*` key of *app* was changed after it was read: nobody would obey it.

        Raises:
            SettingError: A key was changed. The error names it.
        """
        values = list_setting_values(app)
        for key in sorted(values.keys() | self._read_values.keys()):
            if values.get(key) != self._read_values.get(key):
                raise SettingError(
                    key, "was changed after QuartTenants(app) had read it: set it before, or call init_app(app) later"
                )

    async def catch_up(self) -> None:
        """Read which tenants there are now, unless the app is not serving.

        Raises:
            RegistryStaleError: That cannot be read.
        """
        if self._registry is not None:
            await self._registry.catch_up()

    def running(self) -> AbstractAsyncContextManager[None]:
        """Hold the connections and the registry open. The extension does it."""
        raise NotImplementedError

    def find_slug_by_domain(self, domain: Domain) -> Slug | None:
        """Return the slug of the tenant whose own domain this is, or None. Return None while the app is not serving."""
        return None if self._registry is None else self._registry.find_slug_by_domain(domain)


def list_setting_values(app: Quart) -> dict[str, object]:
    """Return the `TENANTS_*` keys of *app* with their values as they were given."""
    return {key: value for key, value in app.config.items() if key.startswith(PREFIX)}


def see_through(proxy: Any) -> Any:
    """Return the object that one of Quart's proxies stands for at the moment."""
    return proxy._get_current_object()  # noqa: SLF001  (Werkzeug documents this name for its proxies.)


def find_state(app: Quart) -> TenantState | None:
    """Return the state of *app*, or None if it has no tenants."""
    state: TenantState | None = app.extensions.get(EXTENSION_NAME)
    return state


def get_state() -> TenantState:
    """Return the state of the current app.

    Raises:
        NoTenantError: There is no current app, or it has no tenants.
    """
    if not has_app_context():
        raise NoTenantError(
            "there is no current app: use `async with app.app_context()` around this; "
            "in a generator that an answer sends, use Quart's stream_with_context()"
        )
    state = find_state(see_through(current_app))
    if state is None:
        raise NoTenantError("this app has no tenants: call QuartTenants(app)")
    return state


def _not_running() -> RuntimeError:
    return RuntimeError("the app is not serving; in a script: async with app.app_context(), tenants.running():")
