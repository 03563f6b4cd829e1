"""Answer errors as problem documents (RFC 9457). This module holds the one table from error class to status."""

import logging
import uuid
from http import HTTPStatus

from quart import Quart, json
from quart.wrappers import Response
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException

from quart_tenants import errors
from quart_tenants.errors import TenantError
from quart_tenants.web.context import find_request
from quart_tenants.web.logs.log_fields import find_log_fields

logger = logging.getLogger(__name__)

RETRY_AFTER = 2
"""Seconds. A pool, a queue or a restarting database has usually recovered by then."""

STATUS: dict[type[TenantError], HTTPStatus] = {
    errors.UnknownHostError: HTTPStatus.NOT_FOUND,
    errors.UnknownTenantError: HTTPStatus.BAD_REQUEST,
    errors.WrongTenantError: HTTPStatus.BAD_REQUEST,
    errors.NotLoggedInError: HTTPStatus.UNAUTHORIZED,
    errors.InvalidCredentialsError: HTTPStatus.UNAUTHORIZED,
    errors.InvalidRequestError: HTTPStatus.BAD_REQUEST,
    errors.InvalidSlugError: HTTPStatus.BAD_REQUEST,
    errors.InvalidSchemaNameError: HTTPStatus.BAD_REQUEST,
    errors.InvalidNameError: HTTPStatus.BAD_REQUEST,
    errors.InvalidDomainError: HTTPStatus.BAD_REQUEST,
    errors.UnknownDomainError: HTTPStatus.NOT_FOUND,
    errors.DomainTakenError: HTTPStatus.CONFLICT,
    errors.DomainNotVerifiedError: HTTPStatus.CONFLICT,
    errors.DnsUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.InvalidUserError: HTTPStatus.BAD_REQUEST,
    errors.PasswordTooLongError: HTTPStatus.BAD_REQUEST,
    errors.RequestFromElsewhereError: HTTPStatus.FORBIDDEN,
    errors.TooManyLoginsError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TenantOverShareError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TenantExistsError: HTTPStatus.CONFLICT,
    errors.RecentlyDroppedError: HTTPStatus.CONFLICT,
    errors.TenantInTrashError: HTTPStatus.CONFLICT,
    errors.FormerSlugError: HTTPStatus.CONFLICT,
    errors.TenantBusyError: HTTPStatus.CONFLICT,
    errors.SchemaExistsError: HTTPStatus.CONFLICT,
    errors.UserExistsError: HTTPStatus.CONFLICT,
    errors.UnknownUserError: HTTPStatus.NOT_FOUND,
    errors.UnknownSchemaError: HTTPStatus.NOT_FOUND,
    errors.TenantNotInTrashError: HTTPStatus.NOT_FOUND,
    errors.SchemaBehindError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.SharedSchemaBehindError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.HashQueueFullError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DatabaseUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DatabaseTimeoutError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.PoolExhaustedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RequestTimeoutError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.SessionUncheckedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RolesNotReadyError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RegistryNotReadyError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RegistryStaleError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NoTenantError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.DatabaseRefusedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.TransactionLostError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.LeakError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.SettingError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.SharedNameError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.MigrationFileError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.MigrationFailedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.EmbeddedPostgresError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.AddressInUseError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.BackupFileError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ClientProgramError: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def answer_tenant_errors(app: Quart) -> None:
    """Let *app* answer every `TenantError` as a problem document."""
    app.register_error_handler(TenantError, answer_tenant_error)


def answer_all_errors(app: Quart) -> None:
    """Let *app* answer every error as a problem document, in which no details of a bug are shown.

    This is for an app that serves machines. It replaces Quart's debug page, too.
    """
    answer_tenant_errors(app)
    app.register_error_handler(HTTPException, _answer_http_exception)
    app.register_error_handler(Exception, _answer_bug)


def make_problem(status: HTTPStatus, detail: str, code: str, **more: str) -> Response:
    """Return a problem document. Its `type` is `about:blank`, because the status and our `code` say it all."""
    facts = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail, "code": code}
    body = facts | more
    response = Response(json.dumps(body), status, content_type="application/problem+json")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def make_tenant_problem(error: TenantError) -> Response:
    """Return the problem document of *error*."""
    status = _get_status(error)
    # From 500 on the message may name hosts, roles and limits of ours. The visitor gets the sentence of the class.
    is_for_visitors = status < HTTPStatus.INTERNAL_SERVER_ERROR
    detail = str(error) if is_for_visitors else (type(error).__doc__ or "").partition("\n")[0]
    problem = make_problem(status, detail, error.code)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        problem.headers["Retry-After"] = str(getattr(error, "retry_after", RETRY_AFTER))
    return problem


async def answer_tenant_error(error: TenantError) -> Response:
    """Return the answer to *error*, and write down in the log what the visitor is not told."""
    status = _get_status(error)
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return await _answer_bug(error)
    if status > HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("%s: %s: %s", _describe_request(), error.code, error)
    return make_tenant_problem(error)


def _get_status(error: TenantError) -> HTTPStatus:
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), HTTPStatus.INTERNAL_SERVER_ERROR)


async def _answer_http_exception(error: HTTPException) -> Response:
    # Redirects are exceptions, too, and have an answer of their own.
    if error.code is None or error.code < HTTPStatus.BAD_REQUEST:
        return Response(status=error.code, headers=Headers(error.get_headers()))
    # The words of the class, not of this exception, so that each status has one body: nobody can tell a host outside
    # the domain from an unknown path. The title is not Python's, which renamed 413 in version 3.13.
    detail = type(error).description or error.name
    problem = make_problem(HTTPStatus(error.code), detail, error.name.lower().replace(" ", "_"), title=error.name)
    for name, value in error.get_headers():
        if name not in ("Content-Type", "Content-Length"):
            problem.headers[name] = value
    return problem


async def _answer_bug(error: Exception) -> Response:
    request_id = find_log_fields().get("request_id") or uuid.uuid4().hex
    logger.error("request %s failed: %s", request_id, _describe_request(), exc_info=error)
    return make_problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Something went wrong on our side; it was written down under this request_id.",
        "internal_server_error",
        request_id=request_id,
    )


def _describe_request() -> str:
    asked = find_request()
    return "no request" if asked is None else f"{getattr(asked, 'method', 'websocket')} {asked.path}"
