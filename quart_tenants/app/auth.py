"""Log in and out."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import asyncpg
from quart import Blueprint, current_app, request
from werkzeug.exceptions import UnsupportedMediaType

from quart_tenants.app.users import User, change_own_password, find_user, replace_password_hash
from quart_tenants.audit import audit
from quart_tenants.errors import (
    InvalidCredentialsError,
    InvalidRequestError,
    InvalidUserError,
    TenantError,
)
from quart_tenants.web.context import find_address, get_current_tenant, tenant_connection
from quart_tenants.web.routing.host_routing import TENANT_HOST
from quart_tenants.web.sessions.login_required import login_required
from quart_tenants.web.sessions.logins import LoginAttempt, login_attempt
from quart_tenants.web.sessions.tenant_sessions import end_session, get_session, start_session
from quart_tenants.web.state import get_state

if TYPE_CHECKING:
    from quart_tenants.app.passwords import PasswordCheck, PasswordHasher

logger = logging.getLogger(__name__)
auth = Blueprint("auth", __name__)

P = ParamSpec("P")
T = TypeVar("T")

_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


@auth.post("/login", host=TENANT_HOST)
async def login() -> dict[str, str]:
    """Check the name and the password, and begin a session."""
    fields = await _read_fields("uname", "passwd")
    async with _checked_password(fields["uname"], fields["passwd"], "login") as (attempt, user, check):
        if check.replacement is not None:
            await _upgrade(user, check.replacement)
        await attempt.succeed(user.username)
    return {"msg": "login successful"}


@auth.post("/logout", host=TENANT_HOST)
async def logout() -> dict[str, str]:
    """End the visitor's session, if there is one, on every worker."""
    await end_session()
    return {"msg": "logout successful"}


@auth.post("/password", host=TENANT_HOST)
@login_required
async def change_password() -> dict[str, str]:
    """Give a visitor who is logged in and knows the old password a new one, and end their other sessions."""
    fields = await _read_fields("passwd", "new_passwd")
    if not fields["new_passwd"]:
        raise InvalidUserError("the new password is empty")
    username = str(get_session().user)
    async with _checked_password(username, fields["passwd"], "password_change") as (attempt, user, _):
        await attempt.forgive()
    password_hash = await _get_hasher().hash(fields["new_passwd"])
    generation = await change_own_password(get_state().database, get_current_tenant(), user, password_hash)
    # With the session counter of this change: a suspension at this moment ends the new session, too.
    await start_session(username, generation=generation)
    audit("password_changed", user=username, address=find_address())
    return {"msg": "password changed"}


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
        check = await _get_hasher().check(password, None if user is None else user.password_hash)
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


def _get_hasher() -> "PasswordHasher":
    return cast("PasswordHasher", current_app.extensions["password_hasher"])


async def _read_fields(*names: str) -> dict[str, str]:
    """Return the fields *names* of the request's form or JSON. A missing field is an empty text."""
    fields: Mapping[str, Any]
    if request.mimetype in _FORM_TYPES:
        fields = await request.form
    else:
        # Reading the body checks its size first: a body that is too large is 413, of whatever type it is.
        fields = _parse_json(await request.get_data())
    texts = {name: fields.get(name, "") for name in names}
    if not all(isinstance(text, str) for text in texts.values()):
        raise InvalidRequestError(f"{' and '.join(names)} must be texts")
    return texts


def _parse_json(body: str | bytes) -> Mapping[str, Any]:
    if not request.mimetype and not body:
        return {}
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    try:
        # request.get_json would answer 500 for bytes that are not UTF-8.
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("the body is no JSON") from error
    if not isinstance(fields, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return fields
