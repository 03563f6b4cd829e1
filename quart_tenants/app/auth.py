"""Log in and out."""

from quart import Blueprint

from quart_tenants.app.credentials import log_in, set_new_password
from quart_tenants.app.forms import read_fields
from quart_tenants.web.routing.host_routing import TENANT_HOST
from quart_tenants.web.sessions.login_required import login_required
from quart_tenants.web.sessions.tenant_sessions import end_session

auth = Blueprint("auth", __name__)


@auth.post("/login", host=TENANT_HOST)
async def login() -> dict[str, str]:
    """Check the name and the password, and begin a session."""
    fields = await read_fields("uname", "passwd")
    await log_in(fields["uname"], fields["passwd"])
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
    fields = await read_fields("passwd", "new_passwd")
    await set_new_password(fields["passwd"], fields["new_passwd"])
    return {"msg": "password changed"}
