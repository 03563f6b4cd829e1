"""Find, add, suspend and change the users of one tenant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.errors import InvalidCredentialsError, InvalidUserError, UnknownUserError, UserExistsError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.sessions.session_ends import end_user_sessions
from quart_tenants.tenant import Tenant

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

_MAX_USERNAME_LENGTH = 254  # characters; an e-mail address has at most as many (RFC 5321, errata 1690)

_FIND_USER = "SELECT id, username, password FROM app_user WHERE username = $1"
_ADD_USER = "INSERT INTO app_user (username, password) VALUES ($1, $2)"
# Replaces only the hash that was checked: a password that was changed in between stays changed.
_REPLACE_HASH = "UPDATE app_user SET password = $3 WHERE id = $1 AND password = $2"
# Also returns whether the user was suspended until now.
_SET_HASH = """
UPDATE app_user SET password = $2
FROM (SELECT id, password LIKE '!%' AS suspended FROM app_user WHERE username = $1 FOR UPDATE) AS before
WHERE app_user.id = before.id
RETURNING before.suspended
"""
# As in /etc/shadow: no hash begins with "!", so no password matches, and the hash is kept for later.
_SUSPEND = "UPDATE app_user SET password = '!' || ltrim(password, '!') WHERE username = $1"
_RESUME = "UPDATE app_user SET password = ltrim(password, '!') WHERE username = $1"


@dataclass(frozen=True, slots=True)
class User:
    """A row of app_user."""

    id: int
    username: str
    password_hash: str


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store *text*, which may hold neither a NUL nor half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


async def find_user(connection: "Connection", username: str) -> User | None:
    """Return the user of that name, or None."""
    if not is_storable(username):
        return None
    row = await connection.fetchrow(_FIND_USER, username)
    return None if row is None else User(row["id"], row["username"], row["password"])


async def add_user(connection: "Connection", tenant: str, username: str, password_hash: str) -> None:
    """Add a user who may log in.

    Raises:
        InvalidUserError: The name is empty, too long or not printable.
        UserExistsError: *tenant* has a user with that name.
    """
    if not 0 < len(username) <= _MAX_USERNAME_LENGTH or not username.isprintable():
        raise InvalidUserError(f"{username!r} cannot be a user: use 1 to {_MAX_USERNAME_LENGTH} printable characters")
    try:
        await connection.execute(_ADD_USER, username, password_hash)
    except asyncpg.UniqueViolationError as error:
        raise UserExistsError(tenant, username) from error


async def replace_password_hash(connection: "Connection", user: User, password_hash: str) -> None:
    """Store a better hash of the same password, unless the password was changed meanwhile."""
    await connection.execute(_REPLACE_HASH, user.id, user.password_hash, password_hash)


async def replace_password(database: Database, tenant: Tenant, username: str, password_hash: str) -> bool:
    """Give a user a new password, and end all their sessions. A suspended user may log in again.

    Returns:
        Whether the user was suspended.

    Raises:
        UnknownUserError: *tenant* has no such user.
    """
    await check_user(database, tenant, username)
    # The sessions end before the change, so that nobody stays logged in whatever fails in between. They end once more
    # after it, for anybody who has logged in with the old password in between.
    await end_user_sessions(database, tenant, username)
    async with database.tenant_connection(tenant) as connection:
        suspended = await connection.fetchval(_SET_HASH, username, password_hash)
    if suspended is None:
        raise UnknownUserError(tenant.slug, username)
    await end_user_sessions(database, tenant, username)
    return bool(suspended)


async def check_user(database: Database, tenant: Tenant, username: str) -> None:
    """Make sure that *tenant* has a user with this name.

    Raises:
        UnknownUserError: *tenant* has no such user.
    """
    async with database.tenant_connection(tenant, read_only=True) as connection:
        if await find_user(connection, username) is None:
            raise UnknownUserError(tenant.slug, username)


async def change_own_password(database: Database, tenant: Tenant, user: User, password_hash: str) -> int:
    """Give *user*, whose stored hash was checked, a new password, and end all their sessions.

    Returns:
        The session counter for a new session, with which the user goes on.

    Raises:
        InvalidCredentialsError: The stored hash has changed since the check. The user may be suspended now, so the
            password stays as it is.
    """
    await end_user_sessions(database, tenant, user.username)
    async with database.tenant_connection(tenant) as connection:
        changed = await connection.execute(_REPLACE_HASH, user.id, user.password_hash, password_hash) != "UPDATE 0"
    if not changed:
        raise InvalidCredentialsError
    return await end_user_sessions(database, tenant, user.username)


async def suspend_user(database: Database, tenant: Tenant, username: str) -> None:
    """Stop a user from logging in, and end all their sessions. To do it again does no harm.

    Raises:
        UnknownUserError: *tenant* has no such user.
    """
    await _update(database, tenant, username, _SUSPEND)
    await end_user_sessions(database, tenant, username)


async def resume_user(database: Database, tenant: Tenant, username: str) -> None:
    """Let a suspended user log in again, with the same password as before.

    Raises:
        UnknownUserError: *tenant* has no such user.
    """
    await _update(database, tenant, username, _RESUME)


async def log_out_user(database: Database, tenant: Tenant, username: str) -> None:
    """End all sessions of a user, on every worker within two seconds.

    Raises:
        UnknownUserError: *tenant* has no such user.
    """
    # Before the check: a user who was deleted may still have a session.
    if username and is_storable(username):
        await end_user_sessions(database, tenant, username)
    await check_user(database, tenant, username)


async def _update(database: Database, tenant: Tenant, username: str, statement: str) -> None:
    async with database.tenant_connection(tenant) as connection:
        found = is_storable(username) and await connection.execute(statement, username) != "UPDATE 0"
    if not found:
        raise UnknownUserError(tenant.slug, username)
