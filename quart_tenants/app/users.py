"""Find, add and upgrade the users of one tenant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.errors import InvalidUserError, UserExistsError

if TYPE_CHECKING:
    from quart_tenants.postgres.block import Connection

_MAX_USERNAME_LENGTH = 254  # characters; an e-mail address has at most as many (RFC 5321, errata 1690)

_FIND_USER = "SELECT id, username, password FROM app_user WHERE username = $1"
_ADD_USER = "INSERT INTO app_user (username, password) VALUES ($1, $2)"
# Only over the hash that was checked: a password changed in between stays changed.
_REPLACE_HASH = "UPDATE app_user SET password = $3 WHERE id = $1 AND password = $2"


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
