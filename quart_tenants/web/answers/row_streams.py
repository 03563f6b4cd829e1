"""Answer with all rows of a statement, in as much memory as some of them take."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Self

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response, current_app
from quart.wrappers import Request
from quart.wrappers.response import ResponseBody

from quart_tenants.connection import Connection
from quart_tenants.web.answers.row_json import encode_json, encode_rows
from quart_tenants.web.context import find_request, tenant_connection

# Each piece costs a round trip to the database and a write to the client. Few pieces are fast; small pieces save
# memory.
_PIECE = 64 * 1024  # bytes
_FIRST_ROWS = 100  # while the length of a row is unknown
_MOST_ROWS = 2000
_STREAMS = "quart_tenants.streams"


async def stream_rows(statement: str, *arguments: object, key: str = "data") -> Response:
    """Answer `{"data": […]}` with all rows of *statement* at the current tenant, as `RowJSONProvider` writes them.

    A cursor in one read-only block reads some rows at a time, each time after the client has taken the rows before. The
    connection goes back to the pool after the last rows, or when the client goes away.

    An error before the first rows is raised here, and answered like any other error. After that an error breaks the
    connection to the client, so an answer that ends early never looks complete. `TENANTS_REQUEST_TIMEOUT` limits the
    time until the first rows. Quart's `RESPONSE_TIMEOUT` (or `timeout` of the answer) limits the time for all rows, so
    that a slow client does not keep the connection, which counts for the share of its tenant.

    Args:
        statement: A statement that can have a cursor: SELECT, VALUES or TABLE.
        arguments: The values of $1, $2, …
        key: The name of the array in the answer.

    Raises:
        RuntimeError: There is no request here.
        asyncpg.PostgresError: PostgreSQL refuses *statement*.

    Entering the block raises the errors that `tenant_connection` names.

    Example:
        ```python
        @app.get("/orders/export", host=tenants.host)
        async def export() -> Response:
            return await stream_rows("SELECT id, total FROM orders WHERE total > $1 ORDER BY id", 100)
        ```
    """
    asked = find_request()
    if not isinstance(asked, Request):
        raise RuntimeError("stream_rows() answers a request, and there is none here")
    pieces = _write_pieces(tenant_connection(read_only=True), statement, arguments, key)
    scope: Any = asked.scope
    scope.setdefault(_STREAMS, []).append(pieces)
    first = await anext(pieces)
    if asked.method == "HEAD":
        await pieces.aclose()
        return current_app.response_class(mimetype="application/json")
    return current_app.response_class(_RowsBody(first, pieces), mimetype="application/json")


class StreamEnds:
    """ASGI middleware: closes the streams of a request at its end, even if they were never sent."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass the request on."""
        try:
            await self._app(scope, receive, send)
        finally:
            for stream in scope.get(_STREAMS, ()):  # type: ignore[attr-defined]
                await stream.aclose()


class _RowsBody(ResponseBody):
    """The body of an answer. It must be closed, because it holds a connection."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]) -> None:
        self._first = first
        self._rest = rest

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._rest.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        async for piece in self._rest:
            yield piece


async def _write_pieces(
    block: AbstractAsyncContextManager[Connection], statement: str, arguments: tuple[object, ...], key: str
) -> AsyncGenerator[bytes, None]:
    piece = b"{" + encode_json(key) + b":["
    wanted = _FIRST_ROWS
    async with block as connection:
        cursor = await connection.cursor(statement, *arguments)
        rows = await cursor.fetch(wanted)
        text = encode_rows(rows)[1:-1]
        piece += text
        while len(rows) == wanted:
            yield piece
            wanted = max(1, min(_MOST_ROWS, _PIECE * len(rows) // len(text)))
            rows = await cursor.fetch(wanted)
            text = encode_rows(rows)[1:-1]
            piece = b"," + text if rows else b""
    # This stands after the block, so that no connection waits until the client has taken the last rows.
    yield piece + b"]}\n"
