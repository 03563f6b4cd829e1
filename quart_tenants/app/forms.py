"""Handle what a form or a program sends: read it, check it, and show the form again with what was wrong."""

import json
from collections.abc import Mapping
from typing import Any

from quart import request
from quart.wrappers import Response
from werkzeug.exceptions import UnsupportedMediaType

from quart_tenants.errors import InvalidRequestError, InvalidUserError, TenantError
from quart_tenants.web.answers.problems import answer_tenant_error

_FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


async def read_fields(*names: str) -> dict[str, str]:
    """Return the fields *names* of the request's form or JSON. A missing field is an empty text.

    Raises:
        InvalidRequestError: The body is no JSON object, or a field is no text.
        werkzeug.exceptions.UnsupportedMediaType: The body is neither a form nor JSON.
    """
    fields: Mapping[str, Any]
    if request.mimetype in _FORM_TYPES:
        fields = await request.form
    else:
        # Reading the body checks its size first: a body that is too large is 413, of whatever type it is.
        fields = _parse_json(await request.get_data())
    texts = {name: fields.get(name, "") for name in names}
    if not all(isinstance(text, str) for text in texts.values()):
        raise InvalidRequestError(f"{' and '.join(names)} must be texts")
    return texts


def check_new_password(password: str, again: str) -> None:
    """Make sure that a new password, which nobody sees while it is typed, is what was meant.

    Raises:
        InvalidUserError: It is empty, or differs from what was typed the second time.
    """
    if not password:
        raise InvalidUserError("the new password is empty")
    if password != again:
        raise InvalidUserError("the two new passwords differ")


async def show_again(
    template: str, error: TenantError, wrong: Mapping[str, tuple[str, ...]], **values: object
) -> Response:
    """Return the form *template* once more, with what was wrong; a problem document for a program.

    Args:
        template: The form.
        error: What was wrong.
        wrong: The fields that an error is about, by its code.
        values: What the template gets besides.
    """
    retry_after = getattr(error, "retry_after", None)
    return await answer_tenant_error(
        error, template, wrong=wrong.get(error.code, ()), retry_after=retry_after, **values
    )


def _parse_json(body: str | bytes) -> Mapping[str, Any]:
    if not request.mimetype and not body:
        return {}
    if request.mimetype != "application/json":
        raise UnsupportedMediaType
    try:
        # request.get_json would answer 500 for bytes that are not UTF-8.
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError("the body is no JSON") from error
    if not isinstance(fields, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return fields
