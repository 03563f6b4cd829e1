"""The command that makes the tenants of a list."""

from typing import BinaryIO

import click

from quart_tenants.errors import TenantExistsError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.tenants.free_names import find_obstacles
from quart_tenants.postgres.tenants.provisioning import create_tenants
from quart_tenants.postgres.tenants.staged_creation import sweep_unfinished
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from quart_tenants.web.commands.progress import Progress
from quart_tenants.web.commands.running import Failures, count_tenants, tell_hooks_of_each, with_database
from quart_tenants.web.commands.tenant_list import TenantList, parse_tenant_list

_MOST_MISTAKES = 20


@click.command("create-many")
@click.argument("file", type=click.File("rb"))
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Tenants at the same time.")
@click.option(
    "--skip-existing", is_flag=True, help="Skip tenants that exist already, for example after an interruption."
)
@click.option("--dry-run", is_flag=True, help="Check everything and create nothing.")
@with_database
async def create_many_command(
    database: Database, settings: Settings, file: BinaryIO, jobs: int, skip_existing: bool, dry_run: bool
) -> None:
    """Create the tenants of a CSV file with the header slug,name.

    The file is UTF-8, and the column name may be missing. All lines are checked before the first tenant is made. After
    a later failure the new tenants stay: run it again with --skip-existing. FILE may be - for stdin.
    """
    tenants = parse_tenant_list(file.read())
    existing = set()
    if not dry_run:
        await sweep_unfinished(database, tenants.names)
    for slug, error in (await find_obstacles(database, tenants.names, settings=settings)).items():
        if skip_existing and isinstance(error, TenantExistsError) and error.slug == slug:
            existing.add(slug)
        else:
            tenants.mistakes.append(
                (tenants.lines[slug], str(error) if repr(slug) in str(error) else f"{slug!r}: {error}")
            )
    _refuse_mistakes(file.name, tenants)
    names = {slug: name for slug, name in tenants.names.items() if slug not in existing}
    if existing:
        click.echo(f"skipped, because they exist already: {count_tenants(len(existing))}", err=True)
    if dry_run:
        click.echo(f"would create {count_tenants(len(names))}")
        return
    made: list[Tenant] = []
    try:
        with Progress("creating", len(names)) as progress:

            def count(tenant: Tenant) -> None:
                made.append(tenant)
                progress.advance()

            await create_tenants(database, names, settings=settings, jobs=jobs, on_created=count)
        click.echo(f"created {count_tenants(len(made))}")
    finally:
        # After a failure and a Ctrl-C, too: the next run skips the tenants that exist.
        if len(made) < len(names):
            click.echo(f"{len(made)} of {count_tenants(len(names))} were made; go on with --skip-existing", err=True)
        failures = Failures(len(names))
        await tell_hooks_of_each("created", made, failures)
    failures.end()


def _refuse_mistakes(name: str, tenants: TenantList) -> None:
    if not tenants.mistakes:
        return
    for line, reason in sorted(tenants.mistakes)[:_MOST_MISTAKES]:
        click.echo(f"{name}: line {line}: {reason}", err=True)
    more = len(tenants.mistakes) - _MOST_MISTAKES
    if more > 0:
        click.echo(f"and {more} more", err=True)
    lines = len({line for line, _ in tenants.mistakes})
    raise click.ClickException(f"nothing was created: {lines} line{'s are' if lines != 1 else ' is'} wrong in {name}")
