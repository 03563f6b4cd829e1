"""Show an error to a person: by the app's own template, or by a plain page."""

import html
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from jinja2 import TemplateNotFound
from quart import has_request_context, render_template
from quart.wrappers import Response

from quart_tenants.web.context import describe_request, find_request, prefers_html

logger = logging.getLogger(__name__)

TEMPLATE = "tenant_error.html"
"""The template of the app. It gets *status* (a number), *title*, *text*, *code* and *request_id* (or None)."""

_PLAIN_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<h1>{title}</h1>
<p>{text}</p>
{more}</html>
"""


def wants_page() -> bool:
    """Return whether the visitor of this request is a person, to judge by what the request accepts."""
    asked = find_request()
    return has_request_context() and asked is not None and prefers_html(asked)


async def turn_into_page(
    problem: Response,
    text: str,
    code: str,
    request_id: str | None = None,
    *,
    template: str = TEMPLATE,
    values: Mapping[str, Any] | None = None,
) -> Response:
    """Return the answer *problem* with a page in place of its document.

    A template that raises an error is logged, and the plain page takes its place.

    Args:
        problem: An answer. Its status and its headers are kept.
        text: What the visitor may read.
        code: The name of the error for programs.
        request_id: Under which the log has more.
        template: Another template, such as the form in which something was wrong.
        values: What that template gets besides.
    """
    status = HTTPStatus(problem.status_code)
    facts = {"status": int(status), "title": status.phrase, "text": text, "code": code, "request_id": request_id}
    try:
        page = await render_template(template, **{**(values or {}), **facts})
    except Exception as error:
        # The visitor is to read what went wrong first, and not what went wrong while that was shown. Having no such
        # template is no mistake.
        if not isinstance(error, TemplateNotFound) or error.name != TEMPLATE:
            logger.exception("%s: the template %s cannot be rendered", describe_request(), template)
        return make_plain_page(problem, text, request_id)
    return _replace_document(problem, page)


def make_plain_page(problem: Response, text: str, request_id: str | None = None) -> Response:
    """Return the answer *problem* with a page in place of its document that needs neither a template nor an app.

    The arguments are those of `turn_into_page`.
    """
    title = html.escape(HTTPStatus(problem.status_code).phrase)
    more = "" if request_id is None else f"<p><code>{html.escape(request_id)}</code></p>\n"
    return _replace_document(problem, _PLAIN_PAGE.format(title=title, text=html.escape(text), more=more))


def _replace_document(problem: Response, page: str) -> Response:
    answer = Response(page, problem.status_code, mimetype="text/html")
    for name, value in problem.headers:
        if name.lower() not in ("content-type", "content-length"):
            answer.headers[name] = value
    return answer
