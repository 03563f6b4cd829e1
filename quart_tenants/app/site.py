"""Serve the static files and the public page, which are the same for everybody."""

from quart import Blueprint, render_template, send_from_directory
from quart.wrappers import Response
from werkzeug.exceptions import NotFound

from quart_tenants.app.page_style import STATIC
from quart_tenants.web.routing.host_routing import APEX_HOST, TENANT_HOST
from quart_tenants.web.state import get_state

site = Blueprint("site", __name__)


@site.get("/static/<path:filename>", host=TENANT_HOST)
@site.get("/static/<path:filename>", host=APEX_HOST, endpoint="apex_static")
async def static(filename: str) -> Response:
    """Send the static file with this name. All tenants share it."""
    try:
        return await send_from_directory(STATIC, filename)
    except OSError as error:
        # Such as a name that is longer than the file system allows.
        raise NotFound from error


@site.get("/", host=APEX_HOST)
async def index() -> str:
    """Show the public page. It names no tenant, because the list of customers is not public."""
    settings = get_state().settings
    return await render_template("index.html", domain=settings.domain, sign_up=settings.sign_up)
