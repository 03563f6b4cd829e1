"""The commands for operators: one click group, for `quart-tenants` and for `quart tenants`."""

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
from quart.cli import ScriptInfo

from quart_tenants.errors import InvalidSlugError, SettingError, TenantError
from quart_tenants.postgres.database import Database
from quart_tenants.postgres.provisioning import adopt_schemas, create_tenant, drop_tenant
from quart_tenants.postgres.refusals import translate_refusals
from quart_tenants.postgres.registry import init_registry, list_tenants
from quart_tenants.settings import Settings, read_settings
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_schema_name, parse_slug
from quart_tenants.web.context import EXTENSION_NAME
from quart_tenants.web.environment import read_environment

P = ParamSpec("P")
T = TypeVar("T")


class TenantGroup(click.Group):
    """A group whose commands report a `TenantError` in one line on stderr and end with status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TenantError as error:
            raise click.ClickException(str(error)) from error


def find_settings() -> Settings:
    """Return the settings of the app that `quart --app` names, or else those of the environment.

    Raises:
        SettingError: One is wrong.
    """
    script = click.get_current_context().find_object(ScriptInfo)
    if script is None:
        return read_settings(read_environment())
    extension = script.load_app().extensions.get(EXTENSION_NAME)
    if extension is None:
        raise SettingError("the app", "has no tenants: call QuartTenants(app)")
    settings: Settings = extension.settings
    return settings


def with_database(
    command: Callable[Concatenate[Database, Settings, P], Awaitable[T]],
) -> Callable[P, T]:
    """Give *command* the database that the settings name, and the settings; close it afterwards.

    *command* must not ask the operator anything: inside the event loop a Ctrl-C does not end the
    waiting for an answer.

    Raises:
        DatabaseRefusedError: PostgreSQL refused a statement, such as for a lack of rights.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        settings = find_settings()

        async def run_with_database() -> T:
            async with await Database.open(settings, max_size=1) as database:
                return await command(database, settings, *args, **kwargs)

        with translate_refusals():
            return asyncio.run(run_with_database())

    return run


def tenant_commands(name: str = "tenants") -> click.Group:
    """Return a new group with all commands about tenants, open for more."""
    group = TenantGroup(name, help="Create, adopt, list and drop tenants.")
    for command in (init_command, create_command, adopt_command, list_command, drop_command):
        group.add_command(command)
    return group


@click.command("init")
@with_database
async def init_command(database: Database, settings: Settings) -> None:
    """Make the tenant registry in the database, or bring it up to date.

    Running it again does no harm.
    """
    count = await init_registry(database)
    click.echo(f"registry ready ({count} migration{'s' * (count != 1)} applied)" if count else "registry is up to date")


@click.command("create")
@click.argument("slug")
@click.option("--name", metavar="TEXT", help="What people call the customer.  [default: SLUG]")
@with_database
async def create_command(database: Database, settings: Settings, slug: str, name: str | None) -> None:
    """Register SLUG, create its schema and run every tenant migration.

    SLUG becomes the subdomain. A failure leaves nothing behind.
    """
    tenant = await create_tenant(database, parse_slug(slug), slug if name is None else name, settings=settings)
    click.echo(f"created {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")


@click.command("adopt")
@click.argument("schemas", metavar="[SLUG=]SCHEMA...", nargs=-1, required=True)
@click.option(
    "--at-version",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="NNNN",
    help="The newest migration whose work the schemas contain already; 0 for none.",
)
@with_database
async def adopt_command(database: Database, settings: Settings, schemas: tuple[str, ...], at_version: int) -> None:
    """Register schemas that exist already, as they are.

    Nothing inside them is touched. The subdomain is the schema's name, or SLUG where that is not
    fit for one: acme-corp=AcmeCorp. All are registered, or none.
    """
    parsed: dict[Slug, SchemaName] = {}
    for text in schemas:
        # At the first =, because a schema may have one in its name and a slug cannot.
        before, separator, after = text.partition("=")
        try:
            slug = parse_slug(before)
        except InvalidSlugError as error:
            if separator:
                raise
            raise InvalidSlugError(text, f"it is no subdomain; say which one to use: adopt SLUG={text}") from error
        if slug in parsed:
            raise click.UsageError(f"{slug} is given twice")
        parsed[slug] = parse_schema_name(after if separator else before)
    for tenant in await adopt_schemas(database, parsed, settings=settings, version=at_version):
        click.echo(f"adopted {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")


@click.command("list")
@with_database
async def list_command(database: Database, settings: Settings) -> None:
    """List all tenants.

    A table on a terminal; otherwise one line each: slug, schema and name with tabs between them.
    """
    tenants = await list_tenants(database)
    if sys.stdout.isatty():
        _print_table(tenants)
    else:
        for tenant in tenants:
            click.echo(f"{tenant.slug}\t{tenant.schema}\t{tenant.name}")
    if not tenants:
        click.echo("no tenants yet; the command create makes one", err=True)


@click.command("drop")
@click.argument("slug")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_command(slug: str, yes: bool) -> None:
    """Delete tenant SLUG and its schema with everything in it, for good.

    Asks for the name once more. Without a terminal to ask on it refuses, unless --yes is given.
    """
    parsed = parse_slug(slug)
    if not yes:
        if not sys.stdin.isatty():
            raise click.ClickException(f"dropping {slug} asks first, and there is no terminal to ask on; give --yes")
        if click.prompt(f"This deletes all data of {slug}. Type its name to go on", err=True) != slug:
            raise click.ClickException(f"the names differ; {slug} was not dropped")

    @with_database
    async def drop(database: Database, settings: Settings) -> None:
        tenant = await drop_tenant(database, parsed)
        click.echo(f"dropped {tenant.slug} (schema {tenant.schema})")

    drop()


def _print_table(tenants: list[Tenant]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("tenant", "schema", "name", box=None, pad_edge=False)
    for tenant in tenants:
        # As Text: rich reads [red] and :smile: in a plain str as its own markup.
        table.add_row(*(Text(cell) for cell in (tenant.slug, str(tenant.schema), tenant.name)))
    Console().print(table)
