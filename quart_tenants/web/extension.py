"""Give a Quart app tenants: routes by host, the registry, connections, sessions."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import click
from quart import Quart

from quart_tenants.audit import audit
from quart_tenants.errors import SettingError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.opening import SetUp
from quart_tenants.postgres.migrations.migration_files import get_tenant_migrations
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import PREFIX, Settings, read_settings
from quart_tenants.tenant import Tenant, parse_schema_name, parse_slug
from quart_tenants.web.answers.problems import answer_tenant_errors
from quart_tenants.web.answers.row_streams import StreamEnds
from quart_tenants.web.commands.group import tenant_commands
from quart_tenants.web.environment import read_environment
from quart_tenants.web.guards.deadlines import limit_requests
from quart_tenants.web.guards.framing import RequestFraming
from quart_tenants.web.guards.origins import refuse_from_elsewhere
from quart_tenants.web.guards.proxies import TrustedProxies
from quart_tenants.web.guards.security_headers import SecurityHeaders
from quart_tenants.web.login_gates import LoginGates
from quart_tenants.web.routing.ask_route import add_ask_route
from quart_tenants.web.routing.host_routing import ANY_HOST, APEX_HOST, TENANT_HOST, add_host_routing, enter_tenant
from quart_tenants.web.sessions.session_interface import TenantSessionInterface
from quart_tenants.web.state import TenantState, put_state

if TYPE_CHECKING:
    from quart.sessions import SecureCookieSessionInterface


class QuartTenants(TenantState):
    """The extension: `QuartTenants(app)`, or `init_app(app)` later; one object for one app.

    Settings are the `TENANTS_*` keys of `app.config`; `QUART_TENANTS_*` in the environment go first.

    Attributes:
        host: For `host=` of a route that serves every tenant.
        apex_host: For `host=` of a route on the domain itself.
        any_host: For `host=` of a route that answers whatever the Host header says.
        settings: The checked settings.
        commands: The click group `quart tenants`, open for the app's own commands.
        answer_headers: What every answer says; `answer_headers.add({…})` for headers of the app's own.
    """

    host = TENANT_HOST
    apex_host = APEX_HOST
    any_host = ANY_HOST
    commands: click.Group
    answer_headers: SecurityHeaders

    def __init__(self, app: Quart | None = None) -> None:
        super().__init__()
        self._app: Quart | None = None
        self._set_up: SetUp | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Add tenants to *app*: converters, hooks, sessions, commands. Connects to nothing yet.

        Raises:
            SettingError: A setting is wrong, or *app* does not match routes by host.
        """
        if self._app is not None:
            raise RuntimeError("this object serves an app already: make one QuartTenants for each app")
        if not app.url_map.host_matching:
            raise SettingError(
                "host_matching", "is off: make the app by Quart(__name__, host_matching=True, static_folder=None)"
            )
        app.config.update(read_environment())
        self.settings = read_settings(app.config)
        _check_quart_settings(app)
        self._app = app
        put_state(app, self)
        app.session_interface = cast("SecureCookieSessionInterface", TenantSessionInterface(self))
        add_host_routing(app, self)
        add_ask_route(app)
        answer_tenant_errors(app)
        limit_requests(app, self.settings.request_timeout)
        # Inside the proxies, who know the scheme; around all that answers.
        self.answer_headers = SecurityHeaders(RequestFraming(StreamEnds(app.asgi_app)), self.settings.hsts_seconds)
        app.asgi_app = TrustedProxies(self.answer_headers, self.settings)  # type: ignore[method-assign]
        self.commands = tenant_commands()
        app.cli.add_command(self.commands)

        # Not by url_value_preprocessor: Quart 0.22 calls those with the missing request of a websocket.
        app.before_request(enter_tenant)
        app.before_websocket(enter_tenant)
        app.before_request(refuse_from_elsewhere)
        app.before_websocket(refuse_from_elsewhere)

        resources = AsyncExitStack()

        @app.before_serving
        async def start() -> None:
            _check_quart_settings(app)
            await resources.enter_async_context(self.running())

        @app.after_serving
        async def stop() -> None:
            await resources.aclose()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the connections and the registry open. Serving does this by itself; a script needs it.

        `async with app.app_context(), tenants.running(): …`

        Raises:
            SettingError: The database's address is missing or malformed.
            DatabaseUnavailableError: Nobody answers there.
            RegistryNotReadyError: `quart-tenants init` has not run there.
            MigrationFileError: `TENANTS_MINIMUM_VERSION` is not set, and the newest file cannot be found.
        """
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(await Database.open(self.settings, set_up=self._set_up))
            # Of its own: a pool that the tenants have exhausted must not starve the feed of changes.
            # And in less time than the registry takes to become stale: a hanging read is tried again before that.
            patience = min(self.settings.command_timeout, self.settings.registry_max_age / 2)
            feed_settings = replace(self.settings, command_timeout=patience, acquire_timeout=patience)
            feed = await stack.enter_async_context(await Database.open(feed_settings, max_size=1))
            registry = Registry(feed, self.settings, minimum_version=_get_minimum_version(self.settings))
            await registry.load()
            follower = asyncio.create_task(registry.follow(), name="quart_tenants registry")
            stack.push_async_callback(_cancel, follower)
            self._database, self._registry = database, registry
            self.login_gates = LoginGates(self.settings.login_attempts)
            try:
                yield
            finally:
                self._database = self._registry = None

    def on_connect(self, set_up: SetUp) -> SetUp:
        """Call *set_up* with each new connection of the pool, before any tenant has it. A decorator.

        For what all tenants are to have alike, such as type codecs: what a block sets of these costs its connection.
        """
        self._set_up = set_up
        return set_up

    async def create(self, slug: str, *, name: str | None = None, schema: str | None = None) -> Tenant:
        """Create a tenant, such as at a sign-up. This worker knows it at once, the others within two seconds.

        Args:
            slug: Its subdomain.
            name: What people call it; default: the slug.
            schema: What its schema is called; default: like the slug. For a slug that a renamed tenant had,
                whose schema has kept that name.

        Raises what `create_tenant` raises.
        """
        schema_name = None if schema is None else parse_schema_name(schema)
        tenant = await create_tenant(
            self.database, parse_slug(slug), name or slug, settings=self.settings, schema=schema_name
        )
        audit("tenant_created", tenant=tenant.slug, schema=tenant.schema)
        await self.registry.refresh()
        return tenant


def _check_quart_settings(app: Quart) -> None:
    if app.config["SERVER_NAME"]:
        raise SettingError(
            "SERVER_NAME", f"must stay unset, or every host would be served as that one; set {PREFIX}DOMAIN instead"
        )
    if app.config["SESSION_COOKIE_DOMAIN"]:
        raise SettingError("SESSION_COOKIE_DOMAIN", "must stay unset: a session belongs to one tenant's host")


def _get_minimum_version(settings: Settings) -> int:
    """Return what the tables must be at least: what this code was written for is the newest file beside it."""
    if settings.minimum_version is not None:
        return settings.minimum_version
    return get_tenant_migrations(settings)[-1].version


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
