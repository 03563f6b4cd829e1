"""Log in and out."""

import functools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import asyncpg
from quart import Blueprint, current_app, request, session
from werkzeug.exceptions import UnsupportedMediaType

from quart_tenants.app.users import User, find_user, replace_password_hash
from quart_tenants.errors import InvalidCredentialsError, InvalidRequestError, NotLoggedInError, TenantError
from quart_tenants.web.context import tenant_connection
from quart_tenants.web.routing import TENANT_HOST
from quart_tenants.web.sessions import start_session

if TYPE_CHECKING:
    from quart_tenants.app.passwords import PasswordHasher

logger = logging.getLogger(__name__)
auth = Blueprint("auth", __name__)

P = ParamSpec("P")
T = TypeVar("T")

_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


def login_required(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Answer 401 unless the visitor is logged in to this very tenant. Runs before any SQL of *view*."""

    @functools.wraps(view)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        if session.get("user") is None:
            raise NotLoggedInError
        return await view(*args, **kwargs)

    return guarded


@auth.post("/login", host=TENANT_HOST)
async def login() -> dict[str, str]:
    """Check the name and the password, and begin a session."""
    username, password = await _read_credentials()
    async with tenant_connection() as connection:
        user = await find_user(connection, username)
    # No connection is held meanwhile: this takes a thousand times longer than the query.
    hasher = cast("PasswordHasher", current_app.extensions["password_hasher"])
    check = await hasher.check(password, None if user is None else user.password_hash)
    if user is None or not check.matched:
        raise InvalidCredentialsError
    if check.replacement is not None:
        await _upgrade(user, check.replacement)
    start_session()["user"] = user.username
    return {"msg": "login successful"}


@auth.post("/logout", host=TENANT_HOST)
async def logout() -> dict[str, str]:
    """End the session, if there is one."""
    session.clear()
    return {"msg": "logout successful"}


async def _upgrade(user: User, password_hash: str) -> None:
    try:
        async with tenant_connection() as connection:
            await replace_password_hash(connection, user, password_hash)
    except (TenantError, asyncpg.PostgresError) as error:
        # The password was right. Its hash stays old until the next login.
        logger.warning("a password hash could not be upgraded: %s", error)


async def _read_credentials() -> tuple[str, str]:
    """Return what the request says in `uname` and `passwd`; what is missing is empty."""
    fields: Mapping[str, Any]
    if request.mimetype in _FORM_TYPES:
        fields = await request.form
    else:
        # First of all its size: 413 goes before 415.
        fields = _parse_json_credentials(await request.get_data())
    username, password = fields.get("uname", ""), fields.get("passwd", "")
    if not isinstance(username, str) or not isinstance(password, str):
        raise InvalidRequestError("uname and passwd must be texts")
    return username, password


def _parse_json_credentials(body: str | bytes) -> Mapping[str, Any]:
    if not request.mimetype and not body:
        return {}
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    try:
        # Not request.get_json: it lets bytes that are no UTF-8 pass for a bug.
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("the body is no JSON") from error
    if not isinstance(fields, dict):
        raise InvalidRequestError("the body must be a JSON object with the members uname and passwd")
    return fields
