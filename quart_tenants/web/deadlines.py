"""End every request in time, whatever it waits for."""

import asyncio
import inspect
from typing import Any

from quart import Quart
from quart.typing import ResponseTypes

from quart_tenants.errors import RequestTimeoutError, TenantError


def limit_requests(app: Quart, seconds: float) -> None:
    """Let each request of *app* be cancelled after *seconds*, and be answered as a `RequestTimeoutError`.

    Blocks roll back, within half a second. A body that is being sent, and a websocket, are not cut off.
    """
    dispatch = app.full_dispatch_request

    # Around everything that the app does itself, its hooks included. Quart has no hook there, and a middleware
    # stands outside of the request, where the app's error handlers cannot answer.
    async def dispatch_in_time(context: Any = None) -> ResponseTypes:
        try:
            async with asyncio.timeout(seconds) as limit:
                return await dispatch(context)
        except (TimeoutError, TenantError) as raised:
            error: Exception = raised
            if isinstance(raised, TimeoutError) and limit.expired():
                error = RequestTimeoutError(f"the request took longer than TENANTS_REQUEST_TIMEOUT, {seconds:g} s")
        # A TenantError of what comes after the view and its error handlers, such as a session that could not be
        # ended, is answered like any other.
        return await _answer(app, error, context)

    app.full_dispatch_request = dispatch_in_time  # type: ignore[method-assign, assignment]


async def _answer(app: Any, error: Exception, context: Any) -> ResponseTypes:
    """Let the error handlers of *app* answer *error*. From Quart 0.23 on the context comes first."""
    answer: ResponseTypes
    if "ctx" in inspect.signature(app.finalize_request).parameters:
        answer = await app.finalize_request(context, await app.handle_user_exception(context, error))
    else:
        answer = await app.finalize_request(await app.handle_user_exception(error), context)
    return answer
