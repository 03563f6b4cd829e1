"""The commands that drop tenants into the trash, bring them back and empty it."""

import sys
from collections.abc import Sequence

import click

from quart_tenants.errors import TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.tenants.dependents import list_dependents
from quart_tenants.postgres.tenants.purge import find_purgeable, purge_tenants
from quart_tenants.postgres.tenants.trash import TrashedTenant, drop_tenant, undrop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant, parse_slug
from quart_tenants.web.commands.lifecycle import DAYS, show_day
from quart_tenants.web.commands.run_metrics import leaves_metrics
from quart_tenants.web.commands.running import (
    Failures,
    do_for_each,
    name_program,
    tell_hooks,
    tell_hooks_of_each,
    tell_if_behind,
    with_database,
)

INCLUDING_DEPENDENTS = click.option(
    "--including-dependents",
    is_flag=True,
    help="Drop views and foreign keys of others that depend on the tenant's tables, too.",
)


@click.command("drop")
@click.argument("slugs", metavar="SLUG...", nargs=-1, required=True)
@INCLUDING_DEPENDENTS
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop_command(slugs: tuple[str, ...], including_dependents: bool, yes: bool) -> None:
    """Put tenants into the trash.

    From then on nobody can read their data. undrop brings it back until purge deletes it, and the name stays
    taken meanwhile. The command asks for the tenant's name, or for the number of several tenants. Without a
    terminal it refuses, unless --yes is given.
    """
    parsed = list(dict.fromkeys(parse_slug(slug) for slug in slugs))
    if not yes:
        ask_for_name(parsed, "drop", "This stops serving {what}.")

    @with_database
    async def drop(database: Database, settings: Settings) -> None:
        dropped = 0

        async def drop_one(slug: Slug) -> None:
            nonlocal dropped
            tenant = await drop_tenant(database, slug, including_dependents=including_dependents)
            dropped += 1
            click.echo(f"dropped {tenant.slug} (schema {tenant.schema})")
            await tell_hooks("dropped", tenant)

        try:
            await do_for_each(parsed, drop_one)
        finally:
            if dropped:
                until = show_day(settings.trash_days)
                click.echo(
                    f"kept in the trash until {until}; to bring one back: {name_program()} undrop SLUG", err=True
                )

    drop()


@click.command("undrop")
@click.argument("slug")
@with_database
async def undrop_command(database: Database, settings: Settings, slug: str) -> None:
    """Bring tenant SLUG back from the trash as it was.

    Its rows, sessions and domains are those at the moment of the drop. Tenants in the trash are not migrated:
    run migrate if migrations ran meanwhile.
    """
    tenant = await undrop_tenant(database, parse_slug(slug), settings=settings)
    click.echo(f"brought back {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")
    tell_if_behind(tenant, settings)
    if tenant.suspended:
        click.echo(f"it is suspended, as it was before: {name_program()} resume {tenant.slug}", err=True)


@click.command("purge")
@click.argument("slugs", metavar="[SLUG]...", nargs=-1)
@click.option(
    "--older-than",
    type=DAYS,
    metavar="DAYS",
    help="Only tenants dropped longer ago.  [default: TENANTS_TRASH_DAYS]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted and delete nothing.")
@INCLUDING_DEPENDENTS
@click.option("--yes", is_flag=True, help="Do not ask.")
@leaves_metrics
def purge_command(
    slugs: tuple[str, ...], older_than: float | None, dry_run: bool, including_dependents: bool, yes: bool
) -> None:
    """Delete tenants for good that have been in the trash for long, or the tenants SLUG at once.

    Nothing brings them back. The command asks for the tenant's name, or for the number of several tenants.
    Without a terminal it refuses, unless --yes is given. After an interruption the next purge continues.
    """
    if slugs and older_than is not None:
        raise click.UsageError("give tenants or --older-than, not both")
    parsed = [parse_slug(slug) for slug in slugs]

    @with_database
    async def find(database: Database, settings: Settings) -> list[TrashedTenant]:
        found = await find_purgeable(database, settings=settings, slugs=parsed or None, older_than_days=older_than)
        if dry_run:
            for tenant in found:
                click.echo(f"would purge {_describe(tenant)}")
                async with database.connection() as connection:
                    dependents = await list_dependents(connection, tenant.schema)
                for dependent in dependents:
                    click.echo(f"  outside it {dependent} depends on it", err=True)
        return found

    tenants = find()
    if not tenants:
        click.echo("nothing in the trash is old enough", err=True)
    if dry_run:
        return
    if tenants and not yes:
        for tenant in tenants:
            click.echo(_describe(tenant), err=True)
        ask_for_name([tenant.slug for tenant in tenants], "purge", "This deletes all data of {what} for good.")

    @with_database
    async def purge(database: Database, settings: Settings) -> None:
        failures = Failures(len(tenants))
        purged = []

        def tell(tenant: TrashedTenant) -> None:
            click.echo(f"purged {tenant.slug}")
            purged.append(Tenant(tenant.id, tenant.slug, tenant.schema, tenant.name))

        def fail(tenant: TrashedTenant, error: TenantError) -> None:
            failures.add(tenant.slug, error)

        # This also cleans up the registry, so it runs if there is nothing to delete, too.
        try:
            await purge_tenants(
                database, tenants, on_purged=tell, on_failed=fail, including_dependents=including_dependents
            )
        finally:
            await tell_hooks_of_each("purged", purged, failures)
        failures.end()

    purge()


def _describe(tenant: TrashedTenant) -> str:
    half = ", half deleted already" if tenant.half_purged else ""
    return f"{tenant.slug} (dropped {tenant.dropped_at:%Y-%m-%d %H:%M}{half})"


def ask_for_name(slugs: Sequence[Slug], command: str, warning: str) -> None:
    """Return only if the operator types the tenant's name, or the number of several tenants."""
    several = len(slugs) > 1
    what, answer = (f"{len(slugs)} tenants", str(len(slugs))) if several else (slugs[0], str(slugs[0]))
    if not sys.stdin.isatty():
        raise click.ClickException(f"{command} asks first, and there is no terminal; give --yes")
    question = f"{warning.format(what=what)} Type {'their number' if several else 'its name'} to go on"
    if click.prompt(question, err=True) != answer:
        raise click.ClickException(f"that is not {answer}; nothing was done")
