"""Add the id of the request and the tenant to every log line."""

import logging
import re
import uuid
from collections.abc import MutableMapping
from typing import Any, cast

from quart_tenants.web.context import find_request, find_requested_slug
from quart_tenants.web.state import get_state

BEHIND_PROXY = "quart_tenants.behind_proxy"
"""A key in the scope of a request that came by a trusted proxy."""

REQUEST_ID = "quart_tenants.request_id"
"""A key in the scope of a request that has an id already."""

_REQUEST_ID_HEADER = b"x-request-id"
# Proxies make UUIDs, hexadecimal numbers and ULIDs. No character here could end a line or a quotation.
_SANE = re.compile(r"[A-Za-z0-9._-]{8,64}")


def get_request_id(scope: MutableMapping[str, Any]) -> str:
    """Return the id of the request of *scope*. It is made at the first use, so most requests need none.

    If a trusted proxy has sent an id in `X-Request-Id`, that one is used.
    """
    known = scope.get(REQUEST_ID)
    if known is None:
        known = scope[REQUEST_ID] = _find_given_id(scope) or uuid.uuid4().hex
    return cast("str", known)


def find_log_fields() -> dict[str, str | None]:
    """Return `request_id` and `tenant`, or an empty dict outside a request. `tenant` is None at other hosts."""
    asked = find_request()
    if asked is None:
        return {}
    try:
        slug = find_requested_slug(asked, get_state())
    except Exception:  # noqa: BLE001  (Whatever is wrong here, the line must be written.)
        slug = None
    return {"request_id": get_request_id(cast("dict[str, Any]", asked.scope)), "tenant": slug}


def add_log_fields(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add the request id and the tenant to *event*, unless it has them already. A processor for structlog."""
    for name, value in find_log_fields().items():
        event.setdefault(name, value)
    return event


class LogFields(logging.Filter):
    """Adds the request id and the tenant to each record, for `%(request_id)s` and `%(tenant)s` in your own format.

    A dash stands for a missing value. Add this filter to a handler. If you use a queue, add it to the QueueHandler,
    because the thread behind the queue serves no request.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record."""
        known = find_log_fields()
        for name in ("request_id", "tenant"):
            if not hasattr(record, name):
                setattr(record, name, known.get(name) or "-")
        return True


def _find_given_id(scope: MutableMapping[str, Any]) -> str | None:
    if BEHIND_PROXY not in scope:
        return None
    given = [value for name, value in scope["headers"] if name == _REQUEST_ID_HEADER]
    if len(given) != 1:
        return None
    text: str = given[0].decode("latin-1")
    return text if _SANE.fullmatch(text) else None
