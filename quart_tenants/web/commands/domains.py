"""The commands about the domains that tenants have of their own."""

import click

from quart_tenants.domain import parse_domain
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.tenants.domains import CustomDomain, add_domain, list_domains, remove_domain
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.running import with_database
from quart_tenants.web.commands.tables import print_rows


@click.group("domain")
def domain_commands() -> None:
    """Serve tenants at domains of their own."""


@domain_commands.command("add")
@click.argument("slug")
@click.argument("domain")
@click.option("--trusted", is_flag=True, help="Do not ask DNS: you know that the domain is the tenant's.")
@with_database
async def add_command(database: Database, settings: Settings, slug: str, domain: str, trusted: bool) -> None:
    """Serve tenant SLUG at DOMAIN, too.

    DNS must prove that the domain is the tenant's. The first run says which record to make. Run it again
    when the record is there.
    """
    added = await add_domain(database, parse_slug(slug), parse_domain(domain), settings=settings, trusted=trusted)
    click.echo(f"{added.domain} leads to {added.slug}")


@domain_commands.command("remove")
@click.argument("domain")
@with_database
async def remove_command(database: Database, settings: Settings, domain: str) -> None:
    """Stop serving DOMAIN, and delete all claims to it.

    The tenant keeps its subdomain and its other domains.
    """
    for removed in await remove_domain(database, parse_domain(domain)):
        click.echo(f"removed {removed.domain} of {removed.slug} ({_describe_state(removed)})")


@domain_commands.command("list")
@click.argument("slug", required=False)
@changes_nothing
@with_database
async def list_command(database: Database, settings: Settings, slug: str | None) -> None:
    """List the domains of all tenants, or of SLUG.

    It prints a table on a terminal. Otherwise it prints one line each: domain, tenant, and "served" or
    "not verified", with tabs between them.
    """
    domains = await list_domains(database, None if slug is None else parse_slug(slug))
    print_rows(
        ("domain", "tenant", "state"), [(domain.domain, domain.slug, _describe_state(domain)) for domain in domains]
    )
    if not domains:
        click.echo("no domains yet; the command domain add makes one", err=True)


def _describe_state(domain: CustomDomain) -> str:
    return "served" if domain.verified else "not verified"
