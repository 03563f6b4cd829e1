"""Render a page of the console, or the page of an error."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from quart import Response, g, render_template

from quart_tenants.console.console import Console
from quart_tenants.errors import TenantError

POLICY = (
    # Browsers ask for /favicon.ico by themselves.
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    # What is on a page is the operator's business alone, and old tomorrow.
    "Cache-Control": "no-store",
}
"""Of every answer of the console."""

_UNITS = ("B", "kB", "MB", "GB", "TB")


async def show(console: Console, template: str, **values: Any) -> str:
    """Return a page."""
    return await render_template(
        f"console/{template}",
        news=await console.fleet.get_news(),
        operator=g.operator,
        own_program=console.runs is not None,
        show_time=_show_time,
        show_bytes=show_bytes,
        **values,
    )


async def show_error(console: Console, error: TenantError) -> Response:
    """Return the page of *error*, with what an operator may read: all of it."""
    page = await show(console, "error.html", status=HTTPStatus(error.status), code=error.code, text=str(error))
    return Response(page, error.status)


def _show_time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def show_bytes(number: int) -> str:
    """Return *number* of bytes in the unit that people would choose."""
    size, unit = float(number), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 or size >= 10 else f"{size:.1f} {_UNITS[unit]}"
