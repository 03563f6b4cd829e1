"""Run a command with the database that the settings name, and report an error in one line."""

import asyncio
import errno
import functools
import shlex
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click
from quart.cli import ScriptInfo

from quart_tenants.errors import DatabaseUnavailableError, HookFailedError, SettingError, TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.citus.cluster import has_citus
from quart_tenants.postgres.driver.refusals import translate_refusals
from quart_tenants.postgres.migrations.migration_files import Migration, get_tenant_migrations
from quart_tenants.postgres.tenants.ready_making import ReadyReport
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings, read_settings
from quart_tenants.tenant import Slug, Tenant
from quart_tenants.web.commands.records import record_runs
from quart_tenants.web.commands.run_metrics import note_failures
from quart_tenants.web.environment import read_environment
from quart_tenants.web.lifecycle_hooks import TenantEvent
from quart_tenants.web.state import find_state

P = ParamSpec("P")
T = TypeVar("T")


INTERRUPTED = 130
"""The exit status after Ctrl-C, as of every program that ends of SIGINT in a shell."""


class TenantGroup(click.Group):
    """A group whose commands report a `TenantError` in one line on stderr and end with status 1; with 130 after Ctrl-C.

    Each command writes an audit line, unless `changes_nothing` marks it.
    """

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, or a group that has its commands already."""
        record_runs(cmd, find_settings)
        super().add_command(cmd, name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            result = super().invoke(ctx)
            # On a full disk this raises an error here, and not later in a traceback.
            sys.stdout.flush()
        except TenantError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as error:
            # The command itself has said what stays.
            click.echo("\nAborted!", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise click.ClickException(f"what this prints could not be written: {error.strerror}") from error
        return result


class Failures:
    """Failures in a command over several tenants, which goes on after a failure."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._failed = 0

    def add(self, slug: Slug, error: Exception) -> None:
        """Print a failure on stderr. If there is only one tenant, raise the error."""
        if self._total == 1:
            raise error
        self._failed += 1
        click.echo(f"{slug}: {error}", err=True)

    def end(self) -> None:
        """End the command with status 1 if there were failures."""
        if self._failed:
            note_failures(self._failed)
            raise click.ClickException(f"{self._failed} of {self._total} tenants failed")


async def do_for_each(slugs: Collection[Slug], act: Callable[[Slug], Awaitable[None]]) -> None:
    """Call *act* once for each tenant, and print failures on stderr.

    Raises:
        DatabaseUnavailableError: The database is lost, so that every other tenant would fail, too.
    """
    slugs = dict.fromkeys(slugs)
    failures = Failures(len(slugs))
    for slug in slugs:
        try:
            with translate_refusals():
                await act(slug)
        except DatabaseUnavailableError:
            raise
        except TenantError as error:
            failures.add(slug, error)
    failures.end()


def count_tenants(number: int) -> str:
    """Return *number* with its noun."""
    return f"{number} tenant{'s' * (number != 1)}"


def name_program() -> str:
    """Return the program as the operator typed it: `quart-tenants`, or `quart --app app tenants`."""
    context = click.get_current_context()
    script = context.find_object(ScriptInfo)
    path = "quart-tenants" if context.parent is None else context.parent.command_path
    app = None if script is None else script.app_import_path
    return path if app is None else path.replace(" ", f" --app {shlex.quote(app)} ", 1)


def tell_if_behind(tenant: Tenant, settings: Settings) -> None:
    """Say on stderr if *tenant* must be migrated before it is served."""
    migrations = get_tenant_migrations(settings)
    if tenant.version < len(migrations):
        click.echo(
            f"its tables are at version {tenant.version:04}, and the newest file is {migrations[-1].name}: "
            f"{name_program()} migrate --tenant {tenant.slug}",
            err=True,
        )


def tell_shared(ran: Collection[Migration], settings: Settings) -> None:
    """Say on stderr which shared migrations ran."""
    if ran:
        names = ", ".join(migration.name for migration in ran)
        click.echo(f"shared schema {settings.shared_schemas[0]}: ran {names}", err=True)


async def tell_about_nodes(database: Database) -> None:
    """Say on stderr that a backup shows no single moment, where the tenants lie on several machines."""
    async with database.connection() as connection:
        if await has_citus(connection):
            click.echo(
                "this is Citus, whose workers do not take part in the snapshot of a backup: what is written while it "
                "runs may be in it for one table and not for another",
                err=True,
            )


def describe_ready(report: ReadyReport) -> str:
    """Return what became of the tenants that are made in advance."""
    return f"{report.ready} ready; {report.made} made, {report.removed} thrown away"


class _HookCalls:
    """The hooks of the app that a command works for. The app begins to run when the first hook is needed."""

    def __init__(self) -> None:
        script = click.get_current_context().find_object(ScriptInfo)
        self._app = None if script is None else script.load_app()
        self._state = None if self._app is None else find_state(self._app)
        self._stack = AsyncExitStack()
        self._is_running = False

    async def tell(self, kind: str, event: TenantEvent) -> None:
        if self._app is None or self._state is None or not self._state.has_hooks(kind):
            return
        if not self._is_running:
            context: Any = self._app.app_context()
            await self._stack.enter_async_context(context)
            await self._stack.enter_async_context(self._state.running())
            self._is_running = True
        await self._state.run_hooks(kind, event)

    async def close(self) -> None:
        await self._stack.aclose()


_hook_calls: ContextVar[_HookCalls] = ContextVar("quart_tenants_hook_calls")


async def tell_hooks(kind: str, tenant: Tenant, **facts: Any) -> None:
    """Call the app's hooks for *kind*, such as `created`, if the command works for an app.

    Raises:
        HookFailedError: Some hooks raised an exception.
    """
    known = None if kind in ("dropped", "purged") else tenant
    await _hook_calls.get().tell(kind, TenantEvent(tenant.id, tenant.slug, known, **facts))


async def tell_hooks_of_each(kind: str, tenants: Iterable[Tenant], failures: Failures) -> None:
    """Call `tell_hooks` for each of *tenants*, and add to *failures* those whose hooks raised an exception."""
    for tenant in tenants:
        try:
            await tell_hooks(kind, tenant)
        except HookFailedError as error:
            failures.add(tenant.slug, error)


def find_settings() -> Settings:
    """Return the settings of the app that `quart --app` names, or those in the environment.

    Raises:
        SettingError: A setting is wrong, or the app has no tenants.
    """
    script = click.get_current_context().find_object(ScriptInfo)
    if script is None:
        # Without an app of one's own these are the commands of the reference app.
        return read_settings({"TENANTS_MIGRATIONS_DIR": get_resource_path("sql/tenant")} | read_environment())
    app = script.load_app()
    state = find_state(app)
    if state is None:
        raise SettingError("the app", "has no tenants: call QuartTenants(app)")
    state.refuse_late_settings(app)
    return state.settings


def with_database(
    command: Callable[Concatenate[Database, Settings, P], Awaitable[T]],
) -> Callable[P, T]:
    """Give *command* the database that the settings name, and the settings; close it afterwards.

    The database has one connection, or as many as the command's option `--jobs` says.

    *command* must not ask the operator anything, because a Ctrl-C does not end a prompt inside the event loop.

    Raises:
        DatabaseRefusedError: PostgreSQL refused a statement, for example for a lack of rights.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        settings = find_settings()

        async def run_with_database() -> T:
            jobs = cast("int", kwargs.get("jobs", 1))
            calls = _HookCalls()
            _hook_calls.set(calls)
            async with await Database.open(settings, max_size=jobs, for_many_tenants=jobs > 1) as database:
                try:
                    return await command(database, settings, *args, **kwargs)
                finally:
                    await calls.close()

        with translate_refusals(), asyncio.Runner(loop_factory=_get_loop_factory()) as runner:
            return runner.run(run_with_database())

    return run


def _get_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the factory of the fastest event loop, for commands over thousands of tenants."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop
