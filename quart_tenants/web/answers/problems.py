"""Answer errors: a page for a browser, and a problem document (RFC 9457) for everybody else."""

import logging
import uuid
from http import HTTPStatus
from typing import Any

from quart import Quart, json
from quart.wrappers import Response
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException

from quart_tenants.errors import TenantError, UnknownHostError
from quart_tenants.web.answers.error_pages import TEMPLATE, turn_into_page, wants_page
from quart_tenants.web.answers.websocket_closes import name_close
from quart_tenants.web.context import describe_request
from quart_tenants.web.logs.log_fields import find_log_fields
from quart_tenants.web.routing.host_routing import ForeignHostError

logger = logging.getLogger(__name__)

RETRY_AFTER = 2
"""Seconds. A pool, a queue or a restarting database has usually recovered by then."""


def answer_http_errors(app: Quart) -> None:
    """Let *app* answer Quart's own errors, and those that it raises by `abort`, as it answers a `TenantError`."""
    app.register_error_handler(HTTPException, _answer_http_exception)


def answer_all_errors(app: Quart) -> None:
    """Let *app* answer every error as a problem document, in which no details of a bug are shown.

    This is for an app that serves machines. It replaces Quart's debug page, too.
    """
    app.register_error_handler(TenantError, answer_tenant_error)
    answer_http_errors(app)
    app.register_error_handler(Exception, _answer_bug)


def make_problem(status: HTTPStatus, detail: str, code: str, **more: str) -> Response:
    """Return a problem document. Its `type` is `about:blank`, because the status and our `code` say it all."""
    facts = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail, "code": code}
    body = facts | more
    response = Response(json.dumps(body), status, content_type="application/problem+json")
    # A browser gets a page at the same address.
    response.headers["Vary"] = "Accept"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def make_tenant_problem(error: TenantError) -> Response:
    """Return the problem document of *error*."""
    problem = make_problem(HTTPStatus(error.status), error.visitor_text, error.code)
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        problem.headers["Retry-After"] = str(getattr(error, "retry_after", RETRY_AFTER))
    return problem


async def answer_tenant_error(error: TenantError, template: str = TEMPLATE, **values: Any) -> Response:
    """Return the answer to *error*, and write down in the log what the visitor is not told.

    A browser that asks for a page gets `tenant_error.html` of the app's templates, or a plain page. Everybody else gets
    a problem document. An error handler of the app's own may call this, and so may a view that has a form. A websocket
    that is open is closed: by 1008 if the visitor may not go on, by 1013 if a later try may succeed, by 1011 for a bug.
    The reason is the error's code.

    This raises no error of its own. If the template fails, the log has that error, and the visitor gets the plain page.

    Args:
        error: What went wrong.
        template: The template of the page instead, such as the form once more. An error of status 500 is shown by
            `tenant_error.html` all the same, because nothing that is typed into a form would help.
        values: What that template gets besides *status*, *title*, *text*, *code* and *request_id*.

    Example:
        ```python
        @app.errorhandler(PoolExhaustedError)
        async def say_busy(error: PoolExhaustedError) -> ResponseReturnValue:
            return await answer_tenant_error(error)
        ```
    """
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return await _answer_bug(error)
    if error.status > HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("%s: %s: %s", describe_request(), error.code, error)
    name_close(error.status, error.code)
    problem = make_tenant_problem(error)
    if not wants_page():
        return problem
    return await turn_into_page(problem, error.visitor_text, error.code, template=template, values=values)


async def _answer_http_exception(error: HTTPException) -> Response:
    # Redirects are exceptions, too, and have an answer of their own.
    if error.code is None or error.code < HTTPStatus.BAD_REQUEST:
        return Response(status=error.code, headers=Headers(error.get_headers()))
    # The app's own words, if it has called abort() with some. The title is not Python's, which renamed 413 in 3.13.
    detail = error.description or error.name
    code = error.name.lower().replace(" ", "_")
    name_close(error.code, code)
    problem = make_problem(HTTPStatus(error.code), detail, code, title=error.name)
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            problem.headers[name] = value
    if not wants_page():
        return problem
    if isinstance(error, ForeignHostError):
        # A person who has typed a wrong host or an IP address looks for a mistake in the path otherwise.
        return await turn_into_page(problem, UnknownHostError(error.host).visitor_text, UnknownHostError.code)
    return await turn_into_page(problem, detail, code)


async def _answer_bug(error: Exception) -> Response:
    request_id = find_log_fields().get("request_id") or uuid.uuid4().hex
    logger.error("request %s failed: %s", request_id, describe_request(), exc_info=error)
    text, code = "Something went wrong on our side; it was written down under this request_id.", "internal_server_error"
    name_close(HTTPStatus.INTERNAL_SERVER_ERROR, code)
    problem = make_problem(HTTPStatus.INTERNAL_SERVER_ERROR, text, code, request_id=request_id)
    return await turn_into_page(problem, text, code, request_id) if wants_page() else problem
