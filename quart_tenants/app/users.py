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
# Only over the hash that was checked: a password changed in between stays changed.
_REPLACE_HASH = "UPDATE app_user SET password = $3 WHERE id = $1 AND password = $2"
# And whether the user was suspended until now.
_SET_HASH = """
UPDATE app_user SET password = $2
FROM (SELECT id, password LIKE '!%' AS suspended FROM app_user WHERE username = $1 FOR UPDATE) AS before
WHERE app_user.id = before.id
RETURNING before.suspended
"""
# As in /etc/shadow: no hash begins like this, so no password matches, and the hash is kept for later.
_SUSPEND = "UPDATE app_user SET password = '!' || ltrim(password, '!') WHERE username = $1"
_RESUME = "UPDATE app_user SET password = ltrim(password, '!') WHERE username = $1"


@dataclass(frozen=True, slots=True)
class User:
    """A row of app_user."""

    id: int
    username: str
    password_hash: str


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can hold *text*: no NUL, and no half of a surrogate pair."""
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
        UserExistsError: *tenant* has a user of that name.
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
    """Give a user a new password, which also resumes one who was suspended, and end all their sessions.

    Returns:
        Whether the user was suspended.

    Raises:
        UnknownUserError: *tenant* has no such user.
    """
    await check_user(database, tenant, username)
    # Before, so that nobody stays logged in who should not, whatever fails in between; and after it, for who has
    # logged in with the old password meanwhile.
    await end_user_sessions(database, tenant, username)
    async with database.tenant_connection(tenant) as connection:
        suspended = await connection.fetchval(_SET_HASH, username, password_hash)
    if suspended is None:
        raise UnknownUserError(tenant.slug, username)
    await end_user_sessions(database, tenant, username)
    return bool(suspended)


async def check_user(database: Database, tenant: Tenant, username: str) -> None:
    """Make sure that there is such a user.

    Raises:
        UnknownUserError: There is none.
    """
    async with database.tenant_connection(tenant, read_only=True) as connection:
        if await find_user(connection, username) is None:
            raise UnknownUserError(tenant.slug, username)


async def change_own_password(database: Database, tenant: Tenant, user: User, password_hash: str) -> int:
    """Do the same for *user*, whose stored hash was checked, unless it has changed since: they may be suspended now.

    Returns:
        The generation for the session with which they go on.

    Raises:
        InvalidCredentialsError: It has, and the password stays as it is.
    """
    await end_user_sessions(database, tenant, user.username)
    async with database.tenant_connection(tenant) as connection:
        changed = await connection.execute(_REPLACE_HASH, user.id, user.password_hash, password_hash) != "UPDATE 0"
    if not changed:
        raise InvalidCredentialsError
    return await end_user_sessions(database, tenant, user.username)


async def suspend_user(database: Database, tenant: Tenant, username: str) -> None:
    """Let a user log in no more, and end all their sessions. Doing it again does no harm.

    Raises:
        UnknownUserError: *tenant* has no such user.
    """
    await _update(database, tenant, username, _SUSPEND)
    await end_user_sessions(database, tenant, username)


async def resume_user(database: Database, tenant: Tenant, username: str) -> None:
    """Let a suspended user log in again, with the password of before.

    Raises:
        UnknownUserError: *tenant* has no such user.
    """
    await _update(database, tenant, username, _RESUME)


async def log_out_user(database: Database, tenant: Tenant, username: str) -> None:
    """End all sessions of a user, on every worker within two seconds.

    Raises:
        UnknownUserError: *tenant* has no such user.
    """
    # First: somebody who was deleted may have a session yet.
    if username and is_storable(username):
        await end_user_sessions(database, tenant, username)
    await check_user(database, tenant, username)


async def _update(database: Database, tenant: Tenant, username: str, statement: str) -> None:
    async with database.tenant_connection(tenant) as connection:
        found = is_storable(username) and await connection.execute(statement, username) != "UPDATE 0"
    if not found:
        raise UnknownUserError(tenant.slug, username)
