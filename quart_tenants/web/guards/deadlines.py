"""End every request in time, whatever it waits for."""

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any, TypeVar, cast

from quart import Quart
from quart.typing import ResponseTypes

from quart_tenants.errors import RequestTimeoutError, TenantError

T = TypeVar("T")


def limit_requests(app: Quart, seconds: float) -> None:
    """Let each request of *app* be cancelled after *seconds*, and be answered as a `RequestTimeoutError`.

    Blocks roll back, within half a second. A body that is being sent, and a websocket, are not cut off.
    """
    dispatch: Any = app.full_dispatch_request
    deadlines = Deadlines(seconds)
    # From Quart 0.23 on.
    context_first = "ctx" in inspect.signature(app.finalize_request).parameters

    # Around everything that the app does itself, its hooks included. Quart has no hook there, and a middleware
    # stands outside of the request, where the app's error handlers cannot answer.
    async def dispatch_in_time(context: Any = None) -> ResponseTypes:
        try:
            answer: ResponseTypes = await deadlines.keep(dispatch(context))
        except DeadlineError:
            error: Exception = RequestTimeoutError(
                f"the request took longer than TENANTS_REQUEST_TIMEOUT, {seconds:g} s"
            )
        except (TimeoutError, TenantError) as raised:
            # A TenantError of what comes after the view and its error handlers, such as a session that could not be
            # ended, is answered like any other.
            error = raised
        else:
            return answer
        finalize: Any = app.finalize_request
        if context_first:
            found: Any = app.handle_user_exception
            answer = await finalize(context, await found(context, error))
        else:
            answer = await finalize(await app.handle_user_exception(error), context)
        return answer

    app.full_dispatch_request = dispatch_in_time  # type: ignore[method-assign, assignment]


class DeadlineError(Exception):
    """What ran took too long, and was cancelled."""


class _Running:
    """What runs, and whether it was cancelled for being late."""

    __slots__ = ("due", "late", "task")

    def __init__(self, task: "asyncio.Task[Any]", due: float) -> None:
        self.task = task
        self.due = due
        self.late = False


class Deadlines:
    """Cancels what takes longer than *seconds*, as `asyncio.timeout` does, with one timer for all.

    All have the same time, so that who began first is due first: a request costs an entry at the end of a list.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # In the order in which they are due; a dict, because each leaves on its own.
        self._running: dict[_Running, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def keep(self, work: Awaitable[T]) -> T:
        """Return what *work* returns.

        Raises:
            DeadlineError: It was cancelled, because it took too long.
        """
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[Any]", asyncio.current_task(loop))
        running = _Running(task, loop.time() + self.seconds)
        cancelled_before = task.cancelling()
        self._running[running] = None
        if self._timer is None or self._loop is not loop:
            self._loop = loop
            self._timer = loop.call_at(running.due, self._cancel_late)
        try:
            return await work
        except (asyncio.CancelledError, TimeoutError) as error:
            # Cancelled by somebody else, too: that goes first, as in asyncio.timeout.
            if running.late and (isinstance(error, TimeoutError) or task.cancelling() <= cancelled_before + 1):
                raise DeadlineError from error
            raise
        finally:
            del self._running[running]
            if running.late:
                task.uncancel()

    def _cancel_late(self) -> None:
        loop = cast("asyncio.AbstractEventLoop", self._loop)
        self._timer = None
        now = loop.time()
        for running in self._running:
            if running.due > now:
                self._timer = loop.call_at(running.due, self._cancel_late)
                return
            if not running.late:
                running.late = True
                running.task.cancel()
