"""The commands that make tenants and list them."""

import re
from collections.abc import Sequence

import click

from quart_tenants.errors import InvalidSlugError, TenantError, TenantExistsError
from quart_tenants.long_lists import name_some
from quart_tenants.postgres.backups.restore import copy_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.role_setup import (
    TenantWithoutRole,
    give_roles,
    make_owner,
    refuse_roles_on_citus,
    revoke_public_rights,
)
from quart_tenants.postgres.registry.registry_tables import get_tenant, init_registry, list_tenants
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant
from quart_tenants.postgres.tenants.ready_making import prepare_tenants
from quart_tenants.postgres.tenants.trash import TrashedTenant, list_trash
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_schema_name, parse_slug
from quart_tenants.web.commands.backups import show_notice
from quart_tenants.web.commands.progress import Progress
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.running import (
    Failures,
    count_tenants,
    describe_ready,
    tell_hooks,
    tell_hooks_of_each,
    tell_shared,
    with_database,
)
from quart_tenants.web.commands.tables import print_rows


@click.command("init")
@with_database
async def init_command(database: Database, settings: Settings) -> None:
    """Create the tenant registry in the database, or update it, and the shared schemas.

    With TENANTS_ROLE_PER_TENANT it also gives every tenant a role of its own. Statements for that which only a
    superuser may run are printed on stdout for psql, one each line, and everything else on stderr. Running it
    again does no harm, and continues after an interruption.
    """
    if settings.role_per_tenant:
        await refuse_roles_on_citus(database)
    count = await init_registry(database)
    told = f"registry ready ({count} migration{'s' * (count != 1)} applied)" if count else "registry is up to date"
    # With roles, stdout has only statements.
    click.echo(told, err=settings.role_per_tenant)
    if settings.role_per_tenant:
        await _set_up_roles(database)
    tell_shared(await migrate_shared(database, settings=settings), settings)


async def _set_up_roles(database: Database) -> None:
    owner, tenants = await make_owner(database)
    failed: list[tuple[TenantWithoutRole, TenantError]] = []
    shut: list[str] = []
    with Progress("making roles", len(tenants)) as progress:

        def count(tenant: TenantWithoutRole, failure: TenantError | None) -> None:
            progress.advance(failed=failure is not None)
            if failure is not None:
                failed.append((tenant, failure))

        await give_roles(database, owner, tenants, on_done=count)
    missing = await revoke_public_rights(database, owner, on_shut=shut.append)
    taken = [
        statement.removeprefix("REVOKE ").removesuffix(" FROM PUBLIC")
        for statement in shut
        if statement.startswith("REVOKE ")
    ]
    if taken:
        click.echo(f"taken from everybody: {'; '.join(taken)}", err=True)
    for statement in missing:
        click.echo(f"{statement};")
    _tell_failures(failed, len(tenants))
    if missing:
        raise click.ClickException(
            "PUBLIC still has rights that tenants must not have: let a superuser run the statements above once in this "
            "database, then run init again"
        )
    told = f"roles ready ({count_tenants(len(tenants))} changed)" if tenants else "roles are up to date"
    click.echo(f"{told}; the owner of all schemas is {owner}", err=True)


def _tell_failures(failed: Sequence[tuple[TenantWithoutRole, TenantError]], total: int) -> None:
    """End the command with an error if a tenant failed. A reason that all failures share is printed once."""
    failures = Failures(total)
    reasons = {re.sub(rf"\b{re.escape(tenant.schema.name)}\b", "…", str(error)) for tenant, error in failed}
    for tenant, error in failed[:1] if len(reasons) == 1 else failed:
        failures.add(tenant.slug, error)
    if len(reasons) == 1 and len(failed) > 1:
        click.echo(f"the same for {name_some([tenant.slug for tenant, _ in failed[1:]])}", err=True)
        raise click.ClickException(f"{len(failed)} of {total} tenants failed")
    failures.end()


@click.command("create")
@click.argument("slug")
@click.option("--name", metavar="TEXT", help="What people call the customer.  [default: SLUG]")
@click.option("--schema", metavar="NAME", help="What its schema is called.  [default: SLUG]")
@click.option("--from", "template", metavar="TEMPLATE", help="Copy all data of this tenant instead.")
@with_database
async def create_command(
    database: Database, settings: Settings, slug: str, name: str | None, schema: str | None, template: str | None
) -> None:
    """Register SLUG, create its schema and run every tenant migration.

    SLUG becomes the subdomain. A failure leaves nothing behind. With --from it is a copy of another tenant,
    which is served meanwhile.
    """
    parsed, display_name = parse_slug(slug), slug if name is None else name
    schema_name = None if schema is None else parse_schema_name(schema)
    source = None if template is None else await get_tenant(database, parse_slug(template))
    try:
        if source is None:
            tenant = await create_tenant(database, parsed, display_name, settings=settings, schema=schema_name)
        else:
            tenant = await copy_tenant(
                database,
                source.slug,
                parsed,
                display_name,
                settings=settings,
                schema=schema_name,
                on_notice=show_notice,
            )
    except TenantExistsError as error:
        if error.slug == parsed:
            raise
        # For example, a renamed tenant may still have the schema of its old slug.
        raise click.ClickException(f"{error}; give this one another schema with --schema NAME") from error
    click.echo(f"created {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")
    if source is None:
        await tell_hooks("created", tenant)
    else:
        await tell_hooks("copied", tenant, source_id=source.id)


@click.command("prepare")
@with_database
async def prepare_command(database: Database, settings: Settings) -> None:
    """Make empty tenants in advance, as many as TENANTS_READY_TENANTS says.

    The next sign-ups take them at once. Those that were made from other files are thrown away. The server does the
    same in the background. Running it again does no harm.
    """
    click.echo(describe_ready(await prepare_tenants(database, settings=settings)))


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

    Tables do not change; with TENANTS_ROLE_PER_TENANT owners and grants do. The subdomain is the name of the
    schema, or SLUG if that name cannot be a subdomain: acme-corp=AcmeCorp. All are registered, or none.
    """
    parsed: dict[Slug, SchemaName] = {}
    for text in schemas:
        # Split at the first =, because a schema may have one in its name and a slug cannot.
        before, separator, after = text.partition("=")
        try:
            slug = parse_slug(before)
        except InvalidSlugError as error:
            if separator:
                raise
            remedy = f"; say which one to use: adopt SLUG={text}"
            raise InvalidSlugError(text, "it is no subdomain", for_operators=remedy) from error
        if slug in parsed:
            raise click.UsageError(f"{slug} is given twice")
        parsed[slug] = parse_schema_name(after if separator else before)
    adopted = await adopt_schemas(database, parsed, settings=settings, version=at_version)
    for tenant in adopted:
        click.echo(f"adopted {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")
    failures = Failures(len(adopted))
    await tell_hooks_of_each("created", adopted, failures)
    failures.end()


@click.command("list")
@click.option("--trash", is_flag=True, help="List the tenants in the trash, the oldest drop first.")
@changes_nothing
@with_database
async def list_command(database: Database, settings: Settings, trash: bool) -> None:
    """List all tenants.

    It prints a table on a terminal. Otherwise it prints one line each with tabs between slug, schema, name,
    version and state, which is active or suspended. With --trash it prints slug, schema, name, the time of
    the drop and state, which is dropped or half-purged.
    """
    listed: list[tuple[Tenant | TrashedTenant, str, str]]
    if trash:
        fourth = "dropped"
        listed = [
            (tenant, f"{tenant.dropped_at:%Y-%m-%dT%H:%M:%SZ}", "half-purged" if tenant.half_purged else "dropped")
            for tenant in await list_trash(database)
        ]
    else:
        fourth = "version"
        listed = [
            (tenant, f"{tenant.version:04}", "suspended" if tenant.suspended else "active")
            for tenant in await list_tenants(database)
        ]
    rows = [(tenant.slug, str(tenant.schema), tenant.name, told, state) for tenant, told, state in listed]
    print_rows(("tenant", "schema", "name", fourth, "state"), rows)
    if not rows:
        click.echo("the trash is empty" if trash else "no tenants yet; the command create makes one", err=True)
