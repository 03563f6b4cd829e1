"""Give a Quart app tenants: the extension, which puts the parts of `web/` together."""

import asyncio
import contextlib
import importlib
import importlib.util
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from quart import Quart
from quart.sessions import SecureCookieSessionInterface

from quart_tenants.audit import audit
from quart_tenants.errors import HookFailedError, SettingError, TenantError
from quart_tenants.measures.counts import Figures, Measures
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.opening import SetUp
from quart_tenants.postgres.messages.message_hub import MessageHub
from quart_tenants.postgres.migrations.migration_files import get_shared_migrations, get_tenant_migrations
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.shared.shared_access import check_shared_schemas
from quart_tenants.postgres.tenants.new_tenant import Fill
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.ready_making import keep_ready
from quart_tenants.settings import PREFIX, read_settings
from quart_tenants.tenant import Tenant, parse_schema_name, parse_slug
from quart_tenants.web.answers.problems import answer_http_errors, answer_tenant_error
from quart_tenants.web.answers.row_streams import StreamEnds
from quart_tenants.web.answers.websocket_closes import WebsocketCloses
from quart_tenants.web.commands.each_tenant import TenantWork, make_each_tenant_command
from quart_tenants.web.commands.group import tenant_commands
from quart_tenants.web.context import current_tenant, find_address
from quart_tenants.web.environment import read_environment
from quart_tenants.web.guards.deadlines import RequestDeadlines
from quart_tenants.web.guards.framing import RequestFraming
from quart_tenants.web.guards.origins import refuse_from_elsewhere
from quart_tenants.web.guards.proxies import TrustedProxies
from quart_tenants.web.guards.request_counts import RequestCounts
from quart_tenants.web.guards.request_spans import RequestSpans, note_route
from quart_tenants.web.guards.security_headers import SecurityHeaders
from quart_tenants.web.lifecycle_hooks import TenantEvent
from quart_tenants.web.login_gates import LoginGates
from quart_tenants.web.messages import name_channel
from quart_tenants.web.routing.ask_route import add_ask_route
from quart_tenants.web.routing.default_hosts import DefaultHosts
from quart_tenants.web.routing.host_routing import (
    ANY_HOST,
    APEX_HOST,
    TENANT_HOST,
    add_host_routing,
    enter_tenant,
    name_reserved_host,
)
from quart_tenants.web.routing.probes import add_probes
from quart_tenants.web.sessions.secret_keys import check_secret_key
from quart_tenants.web.sessions.session_interface import TenantSessionInterface
from quart_tenants.web.sessions.session_uses import refuse_foreign_sessions, refuse_foreign_tokens, uses_sessions
from quart_tenants.web.state import EXTENSION_NAME, TenantState, find_state, list_setting_values
from quart_tenants.web.tenant_files import TenantFiles

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

_log = logging.getLogger(__name__)

Work = TypeVar("Work", bound=TenantWork)


class QuartTenants(TenantState):
    """The extension: `QuartTenants(app)`, or `init_app(app)` later. Each app needs an object of its own.

    The settings are the `TENANTS_*` keys of `app.config`. Variables `QUART_TENANTS_*` of the environment replace them.
    The extension uses only what Quart documents, so it works under every ASGI server.

    Args:
        app: Default: none yet, and `init_app` is called later.
        tracer_provider: OpenTelemetry's, which gets a span of each request, block and statement. Needs the extra
            `tracing`.

    Attributes:
        host: For `host=` of a route that serves every tenant.
        apex_host: For `host=` of a route on the domain itself.
        any_host: For `host=` of a route that serves every host.
        settings: The checked settings.
        commands: The click group `quart tenants`, to which an app may add commands.
        answer_headers: The headers of every answer. `answer_headers.add({…})` adds headers of the app.
        sign_in_endpoint: The endpoint of the app's sign-in page, to which `login_required` redirects browsers.

    Example:
        ```python
        app = Quart(__name__, host_matching=True, static_folder=None)
        app.config["TENANTS_MIGRATIONS_DIR"] = "migrations"
        tenants = QuartTenants(app)

        @app.get("/", host=tenants.host)
        async def index() -> str:
            return current_tenant.name
        ```
    """

    host = TENANT_HOST
    apex_host = APEX_HOST
    any_host = ANY_HOST
    commands: click.Group
    answer_headers: SecurityHeaders

    def __init__(self, app: Quart | None = None, *, tracer_provider: "TracerProvider | None" = None) -> None:
        super().__init__()
        self._tracer_provider = tracer_provider
        self._app: Quart | None = None
        self._set_up: SetUp | None = None
        self._ready_taken = asyncio.Event()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Add tenants to *app*: converters, hooks, sessions, commands. This connects to nothing yet.

        Raises:
            SettingError: A setting is wrong, *app* does not match routes by host, or it has sessions of another kind.
        """
        if self._app is not None:
            raise RuntimeError("this object serves an app already: make one QuartTenants for each app")
        if find_state(app) is not None:
            raise RuntimeError("this app has tenants already: make one QuartTenants for it")
        if not app.url_map.host_matching:
            raise SettingError(
                "host_matching", "is off: make the app by Quart(__name__, host_matching=True, static_folder=None)"
            )
        app.config.update(read_environment())
        self.settings = read_settings(app.config)
        self._read_values = list_setting_values(app)
        self.measures = Measures(
            slow_block=self.settings.slow_block,
            named_tenants=self.settings.metrics_tenants,
            figures=self.measures.figures,
        )
        _check_quart_settings(app)
        self._app = app
        app.extensions[EXTENSION_NAME] = self
        if type(app.session_interface) is SecureCookieSessionInterface:
            sessions: object = TenantSessionInterface(self, answer_tenant_error)
            app.session_interface = cast("SecureCookieSessionInterface", sessions)
        refuse_foreign_sessions(app)
        add_host_routing(app, self)
        self._default_hosts = DefaultHosts(app)
        add_probes(app, self)
        add_ask_route(app)
        app.register_error_handler(TenantError, answer_tenant_error)
        app.context_processor(lambda: {"current_tenant": current_tenant})
        # From the inside out. The headers depend on the scheme, which the proxies know, and belong on every answer.
        answering = WebsocketCloses(StreamEnds(app.asgi_app))
        guarded = RequestFraming(RequestDeadlines(answering, self.settings.request_timeout))
        self.answer_headers = SecurityHeaders(guarded, self.settings.hsts_seconds)
        counted: Any = RequestCounts(self.answer_headers, self.measures)
        if self._tracer_provider is not None:
            self.measures.spans = _make_spans(self._tracer_provider)
            counted = RequestSpans(counted, self.measures.spans)
            app.before_request(note_route)
        # Libraries that wrap an app ask whether its `__call__` is a coroutine function, as this one's is.
        app.asgi_app = TrustedProxies(counted, self.settings)  # type: ignore[method-assign]
        self.commands = tenant_commands()
        app.cli.add_command(self.commands)

        # These are no url_value_preprocessors, because Quart 0.22 calls those with the missing request of a websocket.
        app.before_request(enter_tenant)
        app.before_websocket(enter_tenant)
        app.before_request(refuse_from_elsewhere)
        app.before_websocket(refuse_from_elsewhere)

        resources = AsyncExitStack()

        @app.before_serving
        async def start() -> None:
            _check_quart_settings(app)
            self.refuse_late_settings(app)
            refuse_foreign_sessions(app)
            await refuse_foreign_tokens(app, self.settings.domain)
            self._default_hosts.tell_unreachable()
            if self.settings.metrics_bind is not None and not self.has_metrics_port:
                _log.warning(
                    "TENANTS_METRICS_BIND is ignored: only `quart-tenants serve` answers there; "
                    "on this server give `get_stats()` to Prometheus yourself, as docs/measures.md says"
                )
            if uses_sessions(app):
                check_secret_key(app)
            await resources.enter_async_context(self.running())
            if self.settings.ready_tenants:
                # Only where the app is served, and not in a script.
                upkeep = keep_ready(self.database, self._ready_taken, settings=self.settings)
                task = asyncio.create_task(upkeep, name="quart_tenants ready tenants")
                resources.push_async_callback(_cancel, task)

        @app.after_serving
        async def stop() -> None:
            await resources.aclose()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hold the connections and the registry open. Serving does this by itself. A script needs to do it.

        `async with app.app_context(), tenants.running(): …`

        Raises:
            SettingError: The database's address is missing or malformed.
            DatabaseUnavailableError: The database does not answer.
            RegistryNotReadyError: `quart-tenants init` has not run on this database, or not with these shared schemas.
            MigrationFileError: `TENANTS_MINIMUM_VERSION` is not set, and the newest file cannot be found.
        """
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                await Database.open(self.settings, set_up=self._set_up, measures=self.measures)
            )
            # The feed of changes has a connection of its own, because tenants may exhaust the pool. Its time limit is
            # shorter than the registry's, so that a read that hangs is tried again before the registry is stale.
            patience = min(self.settings.command_timeout, self.settings.registry_max_age / 2)
            feed_settings = replace(self.settings, command_timeout=patience, acquire_timeout=patience)
            feed = await stack.enter_async_context(await Database.open(feed_settings, max_size=1))
            minimum = self.settings.minimum_version
            registry = Registry(
                feed,
                self.settings,
                minimum_version=len(get_tenant_migrations(self.settings)) if minimum is None else minimum,
                minimum_shared_version=len(get_shared_migrations(self.settings)),
                measures=self.measures,
            )
            await registry.load()
            async with feed.connection() as connection:
                await check_shared_schemas(connection, settings=self.settings)
            follower = asyncio.create_task(registry.follow(), name="quart_tenants registry")
            stack.push_async_callback(_cancel, follower)
            self._database, self._registry = database, registry
            self.login_gates = LoginGates(self.settings.login_attempts, self.measures)
            self.messages = MessageHub(self.settings, name_channel(self._app) if self._app is not None else "")
            stack.push_async_callback(self.messages.close)
            try:
                yield
            finally:
                self._database = self._registry = None

    def answer_http_errors(self) -> None:
        """Let Quart's own errors, such as 404, and those that `abort(403, "why")` raises look like the library's.

        A browser gets `tenant_error.html`, and a program a problem document. Call this once, when the app is made. An
        error handler of the app's own for one status comes first.

        Raises:
            RuntimeError: `init_app` was not called.
        """
        answer_http_errors(self._get_app())

    def each_tenant_command(self, name: str, *, jobs: int = 4) -> Callable[[Work], Work]:
        """Add the command `quart tenants <name>`, which calls an async function for each tenant. A decorator.

        The command does what `for_each_tenant` does. It prints what the function returns, a line for each tenant. It
        prints failures on stderr and then ends with status 1. The docstring of the function is the command's help.

        Args:
            name: A name that no command of the library has.
            jobs: How many tenants are worked for at the same time. Each may need a connection of the pool.

        Raises:
            RuntimeError: `init_app` was not called.
            ValueError: *name* is the name of a command already.

        Example:
            ```python
            @tenants.each_tenant_command("count")
            async def count_orders(tenant: Tenant) -> str:
                async with tenant_connection(read_only=True) as connection:
                    return f"{await connection.fetchval('SELECT count(*) FROM orders')} orders"
            ```
        """
        app = self._get_app()
        if name in self.commands.commands:
            raise ValueError(f"there is a command {name!r} already")

        def add(work: Work) -> Work:
            self.commands.add_command(make_each_tenant_command(name, app, self, work, jobs))
            return work

        return add

    def _get_app(self) -> Quart:
        if self._app is None:
            raise RuntimeError("this object serves no app yet: call init_app(app) first")
        return self._app

    def on_connect(self, set_up: SetUp) -> SetUp:
        """Call *set_up* with each new connection of the pool, before any tenant uses it. A decorator.

        Use it for what all tenants share, such as type codecs. A block that sets a codec loses its connection.
        """
        self._set_up = set_up
        return set_up

    def add_figures(self, figures: Figures) -> Figures:
        """Let the app's own *figures* be in `get_stats()` and at the metrics port. A decorator.

        `figures` returns numbers by name, such as `{"orders_total": 12, "mails_waiting": 3}`, a hundred at most, in no
        time: it must not wait for anything. A name that ends in `_total` is a number that only grows; at the
        metrics port it is the sum of all workers. Never put what a visitor has typed into a name.
        """
        self.measures.figures.append(figures)
        return figures

    def reserved_host(self, label: str) -> str:
        """Return for `host=` of a route: `<label>.<domain>`, on any port.

        Raises:
            SettingError: `TENANTS_RESERVED_SLUGS` does not keep *label* for the app, so a tenant could take it.
        """
        if label not in self.settings.reserved_slugs:
            raise SettingError(f"{PREFIX}RESERVED_SLUGS", f"lacks {label!r}: a tenant could take that host")
        return name_reserved_host(label)

    def routes_at(self, host: str) -> AbstractContextManager[None]:
        """Let *host* be that of the routes which are added in the context and name none, such as those of an extension.

        `with tenants.routes_at(tenants.apex_host): QuartSchema(app)`. Without it such a route is never reached, except
        for the static files of a blueprint, which every host serves.
        """
        return self._default_hosts.use(host)

    def files(self, root: str | Path) -> TenantFiles:
        """Return the folders of all tenants under *root*: one for each, copied and deleted with the tenant."""
        return TenantFiles(Path(root), self)

    async def create(
        self, slug: str, *, name: str | None = None, schema: str | None = None, fill: Fill | None = None
    ) -> Tenant:
        """Create a tenant, such as at a sign-up. Every worker serves it as soon as this returns.

        Args:
            slug: The subdomain of the tenant.
            name: The name that people read. Default: the slug.
            schema: The name of its schema. Default: the slug. Name another one if the schema of a renamed tenant has
                kept the name.
            fill: An async function that writes the first rows, such as the first user. It gets a connection that sees
                the new tenant's tables, in the transaction that makes the tenant: if it raises or is cancelled, there
                is no tenant, and the slug is free at once.

        Raises:
            InvalidSlugError: *slug* is no slug.
            InvalidSchemaNameError: *schema* is no name of a schema.

        This also raises the errors of `create_tenant`, and those of *fill*.
        """
        schema_name = None if schema is None else parse_schema_name(schema)
        tenant = await create_tenant(
            self.database, parse_slug(slug), name or slug, settings=self.settings, schema=schema_name, fill=fill
        )
        audit("tenant_created", tenant=tenant.slug, schema=tenant.schema.name, address=find_address())
        self._ready_taken.set()
        # The tenant exists, whether or not this worker can hear of it now.
        with contextlib.suppress(TenantError):
            await self.registry.refresh()
        # The log has what a hook raises. The visitor has signed up all the same.
        with contextlib.suppress(HookFailedError):
            await self.run_hooks("created", TenantEvent(tenant.id, tenant.slug, tenant))
        return tenant


def _make_spans(provider: "TracerProvider") -> Any:
    if importlib.util.find_spec("opentelemetry") is None:
        raise SettingError("tracer_provider", "needs the extra: pip install 'quart-tenants[tracing]'")
    # The extra may be left out, and no other module needs it.
    return importlib.import_module("quart_tenants.measures.spans").Spans(provider)


def _check_quart_settings(app: Quart) -> None:
    if app.config["SERVER_NAME"]:
        raise SettingError(
            "SERVER_NAME", f"must stay unset, or every host would be served as that one; set {PREFIX}DOMAIN instead"
        )
    if app.config["SESSION_COOKIE_DOMAIN"]:
        raise SettingError("SESSION_COOKIE_DOMAIN", "must stay unset: a session belongs to one tenant's host")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
