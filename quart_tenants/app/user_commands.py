"""The commands about a tenant's users."""

import sys

import click

from quart_tenants.app.passwords import PasswordHasher
from quart_tenants.app.users import add_user
from quart_tenants.errors import InvalidUserError
from quart_tenants.postgres.database import Database
from quart_tenants.postgres.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant, parse_slug
from quart_tenants.web.commands.running import with_database


def user_commands() -> click.Group:
    """Return a new group with all commands about users."""
    group = click.Group("user", help="Manage the users of one tenant.")
    group.add_command(add_command)
    return group


@click.command("add")
@click.argument("slug")
@click.argument("username")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input: its first line.")
def add_command(slug: str, username: str, password_stdin: bool) -> None:
    """Let USERNAME log in to tenant SLUG.

    Asks for the password, or reads it with --password-stdin; never give it as an argument, where
    other users of the machine can read it.
    """
    # First what can fail without asking anybody for a password.
    tenant = _find_tenant(parse_slug(slug))
    password = _read_password(from_stdin=password_stdin)
    _add_user(tenant, username, password)
    click.echo(f"added {username} to {tenant.slug}")


@with_database
async def _find_tenant(database: Database, settings: Settings, slug: Slug) -> Tenant:
    return await get_tenant(database, slug)


@with_database
async def _add_user(database: Database, settings: Settings, tenant: Tenant, username: str, password: str) -> None:
    hasher = PasswordHasher(settings)
    try:
        password_hash = await hasher.hash(password)
    finally:
        await hasher.close()
    async with database.tenant_connection(tenant) as connection:
        await add_user(connection, tenant.slug, username, password_hash)


def _read_password(*, from_stdin: bool) -> str:
    if from_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt="Once more", err=True)
    else:
        raise click.ClickException("there is no terminal to ask for the password on; give --password-stdin")
    if not password:
        raise InvalidUserError("the password is empty")
    return password
