"""Say on every log line to which request and tenant it belongs."""

import logging
import re
import uuid
from collections.abc import MutableMapping
from typing import Any, cast

from quart_tenants.web.context import find_request, find_requested_slug
from quart_tenants.web.state import get_state

BEHIND_PROXY = "quart_tenants.behind_proxy"
"""In the scope of a request whose headers a trusted proxy has looked at."""

_REQUEST_ID = "quart_tenants.request_id"
_REQUEST_ID_HEADER = b"x-request-id"
# What proxies make: UUIDs, hex, ULIDs. Nothing that could end a line or a quotation.
_SANE = re.compile(r"[A-Za-z0-9._-]{8,64}")


def get_request_id(scope: MutableMapping[str, Any]) -> str:
    """Return the id of the request of *scope*, made at the first use: a request that nobody logs has none.

    A trusted proxy may have given it one in `X-Request-Id`.
    """
    known = scope.get(_REQUEST_ID)
    if known is None:
        known = scope[_REQUEST_ID] = _find_given_id(scope) or uuid.uuid4().hex
    return cast("str", known)


def find_log_fields() -> dict[str, str | None]:
    """Return `request_id` and `tenant`, which is None at hosts of nobody's; nothing outside a request."""
    asked = find_request()
    if asked is None:
        return {}
    try:
        slug = find_requested_slug(asked, get_state())
    except Exception:  # noqa: BLE001  (whatever is wrong here, the line must be written)
        slug = None
    return {"request_id": get_request_id(cast("dict[str, Any]", asked.scope)), "tenant": slug}


def add_log_fields(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Add them to *event*, which what it says itself outranks. A processor for structlog."""
    for name, value in find_log_fields().items():
        event.setdefault(name, value)
    return event


class LogFields(logging.Filter):
    """Adds them to each record, for `%(request_id)s` and `%(tenant)s` in a format of your own; a dash where none is.

    Belongs on a handler. Where a queue stands between, on its QueueHandler: the thread behind it serves no request.
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
