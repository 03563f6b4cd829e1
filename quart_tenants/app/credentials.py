"""Check a visitor's name and password, and change the password."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import asyncpg
from quart import current_app

from quart_tenants.app.users import User, change_own_password, find_user, replace_password_hash
from quart_tenants.audit import audit
from quart_tenants.errors import InvalidCredentialsError, InvalidUserError, TenantError
from quart_tenants.web.context import find_address, get_current_tenant, tenant_connection
from quart_tenants.web.sessions.logins import LoginAttempt, login_attempt
from quart_tenants.web.sessions.tenant_sessions import get_session, start_session
from quart_tenants.web.state import get_state

if TYPE_CHECKING:
    from quart_tenants.app.passwords import PasswordCheck, PasswordHasher

logger = logging.getLogger(__name__)


async def log_in(username: str, password: str) -> None:
    """Begin a session for the user of that name, if the password is right.

    Raises:
        InvalidCredentialsError: There is no such user, or the password is wrong.
        TooManyLoginsError: It is too early for another attempt.

    This also raises the errors of `PasswordHasher.check`.
    """
    async with _checked_password(username, password, "login") as (attempt, user, check):
        if check.replacement is not None:
            await _upgrade(user, check.replacement)
        await attempt.succeed(user.username)


async def set_new_password(password: str, new_password: str) -> None:
    """Give the visitor, who is logged in, a new password and a new session, and end their other sessions.

    Raises:
        InvalidUserError: The new password is empty, or cannot be stored.
        InvalidCredentialsError: *password* is not the old one.
        TooManyLoginsError: It is too early for another attempt.

    This also raises the errors of `PasswordHasher.check`.
    """
    if not new_password:
        raise InvalidUserError("the new password is empty")
    username = str(get_session().user)
    async with _checked_password(username, password, "password_change") as (attempt, user, _):
        await attempt.forgive()
    password_hash = await get_hasher().hash(new_password)
    generation = await change_own_password(get_state().database, get_current_tenant(), user, password_hash)
    # With the session counter of this change: a suspension at this moment ends the new session, too.
    await start_session(username, generation=generation)
    audit("password_changed", user=username, address=find_address())


def get_hasher() -> "PasswordHasher":
    """Return the hasher of this worker."""
    return cast("PasswordHasher", current_app.extensions["password_hasher"])


@asynccontextmanager
async def _checked_password(
    username: str, password: str, event: str
) -> AsyncIterator[tuple[LoginAttempt, User, "PasswordCheck"]]:
    """Check *password*, and yield the login attempt, the user and what the check found.

    Raises:
        InvalidCredentialsError: There is no such user, or the password is wrong.
        TooManyLoginsError: It is too early for another attempt.
    """
    async with login_attempt(username, event=event) as attempt:
        async with tenant_connection(read_only=True) as connection:
            user = await find_user(connection, username)
        attempt.user = None if user is None else user.username
        # No connection is held here, because this takes a thousand times longer than the query.
        check = await get_hasher().check(password, None if user is None else user.password_hash)
        if user is None or not check.matched:
            raise InvalidCredentialsError
        yield attempt, user, check


async def _upgrade(user: User, password_hash: str) -> None:
    try:
        async with tenant_connection() as connection:
            await replace_password_hash(connection, user, password_hash)
    except (TenantError, asyncpg.PostgresError) as error:
        # The password was right, so the login succeeds. The old hash stays until the next login.
        logger.warning("a password hash could not be upgraded: %s", error)
