"""Show a tenant's pages in a browser: sign in, see the data, change the password, sign out.

A form that succeeds ends in a redirect, so that loading the page again sends nothing twice. The API answers 200 to
the same, so the pages have addresses of their own.
"""

from http import HTTPStatus

from quart import Blueprint, flash, redirect, render_template, url_for
from quart.typing import ResponseReturnValue

from quart_tenants.app.credentials import log_in, set_new_password
from quart_tenants.app.data import read_page
from quart_tenants.app.forms import check_new_password, read_fields, show_again
from quart_tenants.errors import TenantError
from quart_tenants.web.answers.retrying import retry_reads
from quart_tenants.web.routing.host_routing import TENANT_HOST
from quart_tenants.web.sessions.login_required import login_required
from quart_tenants.web.sessions.tenant_sessions import end_session, get_session

member_pages = Blueprint("member_pages", __name__)

_ROWS = 50
"""Rows on a page."""

_HOME = "member_pages.show_data"
_SIGN_IN = "member_pages.show_sign_in"

# Which fields of a form an error is about, by its code.
_WRONG_AT_SIGN_IN = {"invalid_credentials": ("uname", "passwd"), "password_too_long": ("passwd",)}
_WRONG_AT_CHANGE = {"invalid_credentials": ("passwd",), "invalid_user": ("new_passwd", "again")}


@member_pages.get("/", host=TENANT_HOST)
@retry_reads
async def show_data() -> ResponseReturnValue:
    """Show the tenant's data, or the way to sign in."""
    if get_session().user is None:
        return redirect(url_for(_SIGN_IN), HTTPStatus.SEE_OTHER)
    rows, last = await read_page(_ROWS)
    return await render_template("data.html", user=get_session().user, rows=rows, last=last)


@member_pages.get("/sign-in", host=TENANT_HOST)
async def show_sign_in() -> str:
    """Show the form to sign in."""
    return await render_template("sign_in.html")


@member_pages.post("/sign-in", host=TENANT_HOST)
async def sign_in() -> ResponseReturnValue:
    """Sign in, and go on to the data. There is no other way on, so no link can lead anybody to another site."""
    fields = await read_fields("uname", "passwd")
    try:
        await log_in(fields["uname"], fields["passwd"])
    except TenantError as error:
        return await show_again("sign_in.html", error, _WRONG_AT_SIGN_IN, uname=fields["uname"])
    return redirect(url_for(_HOME), HTTPStatus.SEE_OTHER)


@member_pages.post("/sign-out", host=TENANT_HOST)
async def sign_out() -> ResponseReturnValue:
    """End the visitor's session, if there is one, on every worker."""
    await end_session()
    return redirect(url_for(_SIGN_IN), HTTPStatus.SEE_OTHER)


@member_pages.get("/change-password", host=TENANT_HOST)
@login_required
async def show_change_password() -> str:
    """Show the form for a new password."""
    return await render_template("change_password.html", user=get_session().user)


@member_pages.post("/change-password", host=TENANT_HOST)
@login_required
async def change_password() -> ResponseReturnValue:
    """Give the visitor a new password, end their other sessions, and go on to the data."""
    user = get_session().user
    fields = await read_fields("passwd", "new_passwd", "again")
    try:
        check_new_password(fields["new_passwd"], fields["again"])
        await set_new_password(fields["passwd"], fields["new_passwd"])
    except TenantError as error:
        return await show_again("change_password.html", error, _WRONG_AT_CHANGE, user=user)
    await flash("Your password was changed. You are signed out everywhere else.")
    return redirect(url_for(_HOME), HTTPStatus.SEE_OTHER)
