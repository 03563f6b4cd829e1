"""Put the pages of a console together, with what is true of all of them."""

from pathlib import Path

import asyncpg
from quart import Blueprint, Response, g, send_from_directory

from quart_tenants.console.action_pages import add_action_pages
from quart_tenants.console.console import Console
from quart_tenants.console.load_page import add_load_page
from quart_tenants.console.pages import add_pages
from quart_tenants.console.run_pages import add_run_pages
from quart_tenants.console.showing import HEADERS, show_error
from quart_tenants.errors import DatabaseRefusedError, TenantError
from quart_tenants.postgres.driver.refusals import translate_refusals
from quart_tenants.web.answers.problems import answer_tenant_error

_STATIC = Path(__file__).parent / "static"


def build_blueprint(console: Console, *, name: str, host: str | None, url_prefix: str | None) -> Blueprint:
    """Return all pages of *console*. Whoever registers it lets nobody in without a name in `g.operator`."""
    blueprint = Blueprint(name, __name__, url_prefix=url_prefix, template_folder="templates")
    blueprint.after_request(add_headers)
    add_pages(blueprint, console, host)
    add_load_page(blueprint, console, host)
    add_action_pages(blueprint, console, host)
    if console.runs is not None:
        add_run_pages(blueprint, console, console.runs, host)

    @blueprint.get("/static/<path:filename>", host=host)
    async def file(filename: str) -> Response:
        return await send_from_directory(_STATIC, filename)

    @blueprint.errorhandler(TenantError)
    async def show_what_is_wrong(error: TenantError) -> Response:
        # A stranger whose request was refused before anybody asked who it is gets what the app says.
        if g.get("operator") is None:
            return await answer_tenant_error(error)
        return await show_error(console, error)

    @blueprint.errorhandler(asyncpg.PostgresError)
    async def show_refusal(error: asyncpg.PostgresError) -> Response:
        # An operator can do something about it, such as a missing right.
        try:
            with translate_refusals():
                raise error
        except DatabaseRefusedError as refused:
            return await show_what_is_wrong(refused)

    return blueprint


async def add_headers(answer: Response) -> Response:
    """Let *answer* run nothing from elsewhere, be in no frame, and be kept nowhere."""
    answer.headers.update(HEADERS)
    return answer
