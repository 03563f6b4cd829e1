"""The commands about a tenant's users."""

import sys

import click

from quart_tenants.app.passwords import PasswordHasher
from quart_tenants.app.users import add_user, check_user, log_out_user, replace_password, resume_user, suspend_user
from quart_tenants.errors import InvalidUserError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant, parse_slug
from quart_tenants.web.commands.running import with_database


def user_commands() -> click.Group:
    """Return a new group with all commands about users."""
    group = click.Group("user", help="Manage the users of one tenant.")
    for command in (add_command, password_command, logout_command, suspend_command, resume_command):
        group.add_command(command)
    return group


_password_stdin = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input: its first line."
)


@click.command("add")
@click.argument("slug")
@click.argument("username")
@_password_stdin
def add_command(slug: str, username: str, password_stdin: bool) -> None:
    """Let USERNAME log in to tenant SLUG.

    The command asks for the password, or reads it with --password-stdin. There is no option for the password itself,
    because other users of the machine could read it.
    """
    # Whatever can fail comes before the question for a password.
    tenant = _find_tenant(parse_slug(slug))
    _add_user(tenant, username, _read_password(from_stdin=password_stdin))
    click.echo(f"added {username} to {tenant.slug}")


@click.command("password")
@click.argument("slug")
@click.argument("username")
@_password_stdin
def password_command(slug: str, username: str, password_stdin: bool) -> None:
    """Give USERNAME of tenant SLUG a new password, and end all their sessions.

    A suspended user may log in again with the new password.
    """
    # Whatever can fail comes before the question for a password.
    tenant = _find_tenant(parse_slug(slug), username)
    was_suspended = _replace_password(tenant, username, _read_password(from_stdin=password_stdin))
    more = ", who was suspended and may log in again" if was_suspended else ""
    click.echo(f"changed the password of {username} at {tenant.slug}{more}")


@click.command("logout")
@click.argument("slug")
@click.argument("username")
@with_database
async def logout_command(database: Database, settings: Settings, slug: str, username: str) -> None:
    """End all sessions of USERNAME at tenant SLUG, on every worker within two seconds."""
    await log_out_user(database, await get_tenant(database, parse_slug(slug)), username)
    click.echo(f"logged out {username} at {slug}")


@click.command("suspend")
@click.argument("slug")
@click.argument("username")
@with_database
async def suspend_command(database: Database, settings: Settings, slug: str, username: str) -> None:
    """Stop USERNAME from logging in to tenant SLUG, and end all their sessions. The command resume undoes it."""
    await suspend_user(database, await get_tenant(database, parse_slug(slug)), username)
    click.echo(f"suspended {username} at {slug}")


@click.command("resume")
@click.argument("slug")
@click.argument("username")
@with_database
async def resume_command(database: Database, settings: Settings, slug: str, username: str) -> None:
    """Let a suspended user log in again, with the same password as before."""
    await resume_user(database, await get_tenant(database, parse_slug(slug)), username)
    click.echo(f"resumed {username} at {slug}")


@with_database
async def _find_tenant(database: Database, settings: Settings, slug: Slug, username: str | None = None) -> Tenant:
    tenant = await get_tenant(database, slug)
    if username is not None:
        await check_user(database, tenant, username)
    return tenant


@with_database
async def _add_user(database: Database, settings: Settings, tenant: Tenant, username: str, password: str) -> None:
    password_hash = await _hash(settings, password)
    async with database.tenant_connection(tenant) as connection:
        await add_user(connection, tenant.slug, username, password_hash)


@with_database
async def _replace_password(
    database: Database, settings: Settings, tenant: Tenant, username: str, password: str
) -> bool:
    return await replace_password(database, tenant, username, await _hash(settings, password))


async def _hash(settings: Settings, password: str) -> str:
    hasher = PasswordHasher(settings)
    try:
        return await hasher.hash(password)
    finally:
        await hasher.close()


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
