"""Show the tenant's data, page by page or all of it."""

import re
from collections.abc import Mapping

from quart import Blueprint, jsonify, request, url_for
from quart.wrappers import Response

from quart_tenants.connection import Row
from quart_tenants.errors import InvalidRequestError
from quart_tenants.web.answers.retrying import retry_reads
from quart_tenants.web.answers.row_streams import stream_rows
from quart_tenants.web.context import tenant_connection
from quart_tenants.web.routing.host_routing import TENANT_HOST
from quart_tenants.web.sessions.login_required import login_required

data = Blueprint("data", __name__)

_MAX_LIMIT = 1000  # rows
_SMALLEST_ID = -(2**63)
_LARGEST_ID = 2**63 - 1
_INTEGER = re.compile("-?[0-9]{1,19}")

# $1 the last id seen, $2 a limit in rows.
_LIST_DATA = "SELECT id, description FROM company_data WHERE id > $1::bigint ORDER BY id LIMIT $2"
_EXPORT_DATA = "SELECT id, description FROM company_data ORDER BY id"


@data.get("/data", host=TENANT_HOST)
@login_required
@retry_reads
async def list_data() -> Response:
    """Return rows in order of id, with a link to the next page if there is one."""
    limit = _read_integer(request.args, "limit", default=_MAX_LIMIT, low=1, high=_MAX_LIMIT)
    rows, last = await read_page(limit)
    response = jsonify(data=rows)
    if last is not None:
        following = url_for("data.list_data", limit=limit, after=last)
        response.headers["Link"] = f'<{following}>; rel="next"'
    return response


@data.get("/data/export", host=TENANT_HOST)
@login_required
@retry_reads
async def export_data() -> Response:
    """Return all rows in order of id, each as soon as the database sends it."""
    return await stream_rows(_EXPORT_DATA)


async def read_page(limit: int) -> tuple[list[Row], int | None]:
    """Return at most *limit* rows, those after the id in `?after=`; and the last one's id if there are more.

    Raises:
        InvalidRequestError: `?after=` is no id.
    """
    after = _read_integer(request.args, "after", default=_SMALLEST_ID, low=_SMALLEST_ID, high=_LARGEST_ID)
    async with tenant_connection() as connection:
        # One row more than the page has tells whether there is a next page.
        rows = await connection.fetch(_LIST_DATA, after, limit + 1)
    page = rows[:limit]
    return page, page[-1]["id"] if len(rows) > limit else None


def _read_integer(arguments: Mapping[str, str], name: str, *, default: int, low: int, high: int) -> int:
    # Werkzeug's get() raises and catches an exception for a missing argument, which takes longer.
    if name not in arguments:
        return default
    text = arguments[name]
    if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
        raise InvalidRequestError(f"{name} must be a whole number from {low} to {high}")
    return int(text)
