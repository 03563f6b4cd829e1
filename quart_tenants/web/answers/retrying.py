"""Run a view that only reads once more when its connection was lost."""

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from quart_tenants.errors import DatabaseUnavailableError
from quart_tenants.web.context import reads_only
from quart_tenants.web.state import get_state

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def retry_reads(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Run *view* once more when it loses its connection, such as in a restart of the database.

    In the view, and in every task that it starts, `tenant_connection()` lends read-only blocks. So a view that writes
    fails with PostgreSQL's own error, and does not write twice. Everything else that the view does, such as a call to
    another service, happens twice. The view does not run again for an exhausted pool, a time-out, a database that
    cannot be reached, or a stream that breaks after the view has returned it.

    If the second run fails, too, its error is raised.

    Example:
        ```python
        @app.get("/orders", host=tenants.host)
        @retry_reads
        async def orders() -> ResponseReturnValue:
            async with tenant_connection() as connection:
                return {"count": await connection.fetchval("SELECT count(*) FROM orders")}
        ```
    """

    @functools.wraps(view)
    async def retried(*args: P.args, **kwargs: P.kwargs) -> T:
        before = reads_only.set(True)
        try:
            try:
                return await view(*args, **kwargs)
            except DatabaseUnavailableError as error:
                if not error.lost:
                    raise
                get_state().measures.retried += 1
                logger.warning("%s begins anew: %s", getattr(view, "__name__", view), error)
            return await view(*args, **kwargs)
        finally:
            reads_only.reset(before)

    return retried
