"""Serve what is the same for everybody: static files and the public page."""

from pathlib import Path

from quart import Blueprint, render_template, send_from_directory
from quart.wrappers import Response
from werkzeug.exceptions import NotFound

from quart_tenants.web.routing.host_routing import APEX_HOST, TENANT_HOST
from quart_tenants.web.state import get_state

site = Blueprint("site", __name__)

_STATIC = Path(__file__).parent / "static"


@site.get("/static/<path:filename>", host=TENANT_HOST)
@site.get("/static/<path:filename>", host=APEX_HOST, endpoint="apex_static")
async def static(filename: str) -> Response:
    """Send the one shared file of that name."""
    try:
        return await send_from_directory(_STATIC, filename)
    except OSError as error:
        # Such as a name that is longer than any file's.
        raise NotFound from error


@site.get("/", host=APEX_HOST)
async def index() -> str:
    """Show the public page. It names no tenant: who the customers are is nobody's business."""
    return await render_template("index.html", domain=get_state().settings.domain)
