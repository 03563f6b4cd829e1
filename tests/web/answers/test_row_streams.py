"""Rows as JSON, as one answer and as a stream, from a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from quart import Quart, Response, ResponseReturnValue

from quart_tenants import QuartTenants, RowJSONProvider, embed_json, stream_rows, tenant_connection
from quart_tenants.web.answers import row_streams
from quart_tenants.web.answers.problems import answer_all_errors
from tests.support.databases import REFERENCE_FILES

pytestmark = pytest.mark.slow

HOST = "acme.localhost"
ROWS = 10_000
# The database fails at that row, long after the first ones are sent.
BREAKS_AT = 9_000
EVERYTHING = """
SELECT 1.50::numeric AS price, '2026-11-23T04:50:00Z'::timestamptz AS placed_at, '2026-11-23'::date AS due,
    '00000000-0000-0000-0000-000000000001'::uuid AS id, '{"a": [1.10]}'::jsonb AS document, ARRAY[1, NULL] AS numbers,
    '[1,5)'::int4range AS range, '\\x00ff'::bytea AS bytes, '1 day'::interval AS time, ROW(1, 'x') AS pair,
    1 AS "again", NULL AS nothing
"""


class Client:
    """Asks an app as a server does, and takes the answer piece by piece."""

    def __init__(self, app: Quart, path: str, method: str = "GET") -> None:
        self.app = app
        self.path = path
        self.method = method
        self.status = 0
        self.pieces: list[bytes] = []
        self.complete = False
        self.asked = False
        self.gone = asyncio.Event()
        self.patience = 1_000_000
        self.waiting = asyncio.Event()

    async def ask(self, *, patience: int | None = None) -> Any:
        """Let the app answer, and take *patience* pieces of that; without one all."""
        self.patience = self.patience if patience is None else patience
        path = self.path.encode()
        headers = [(b"host", HOST.encode())]
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "asgi": {},
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": path,
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "extensions": {},
        }
        await self.app(scope, self._receive, self._send)  # type: ignore[arg-type]
        return json.loads(b"".join(self.pieces)) if self.complete and any(self.pieces) else None

    async def _receive(self) -> Any:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Any) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            return
        if len(self.pieces) == self.patience:
            self.waiting.set()
            await asyncio.Event().wait()
        self.pieces.append(event["body"])
        self.complete = not event["more_body"]
        if self.complete:
            # Servers tell the end of the answer so, and Quart 0.23 waits to be told.
            self.gone.set()


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """An app with one connection, whose tenant has many rows."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(f"""
        INSERT INTO acme.company_data (description) SELECT 'row ' || n FROM generate_series(1, {ROWS}) AS n;
        CREATE FUNCTION acme.pick(n bigint) RETURNS bigint LANGUAGE sql AS 'SELECT n / ({BREAKS_AT} - n)';
    """)
    await connection.close()
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        TENANTS_MIGRATIONS_DIR=REFERENCE_FILES,
        TENANTS_DATABASE_URL=database_url,
        TENANTS_POOL_MAX_SIZE=1,
        TENANTS_ACQUIRE_TIMEOUT=0.5,
    )
    app.json = RowJSONProvider(app)
    tenants = QuartTenants(app)
    answer_all_errors(app)
    tenants.on_connect(embed_json)

    @app.get("/all", host=tenants.host)
    async def all_rows() -> ResponseReturnValue:
        return await stream_rows("SELECT id, description FROM company_data ORDER BY id", key="rows")

    @app.get("/after/<int:number>", host=tenants.host)
    async def after(number: int) -> ResponseReturnValue:
        return await stream_rows("SELECT id FROM company_data WHERE id > $1::bigint ORDER BY id", number)

    @app.get("/missing", host=tenants.host)
    async def missing() -> ResponseReturnValue:
        return await stream_rows("SELECT id FROM no_such_table")

    @app.get("/writing", host=tenants.host)
    async def writing() -> ResponseReturnValue:
        return await stream_rows("SELECT id FROM company_data FOR UPDATE")

    @app.get("/breaking", host=tenants.host)
    async def breaking() -> ResponseReturnValue:
        return await stream_rows("SELECT pick(id) FROM company_data ORDER BY id")

    @app.get("/naive", host=tenants.host)
    async def naive() -> ResponseReturnValue:
        block = tenant_connection()

        async def write() -> AsyncIterator[bytes]:
            separator = b'{"data":['
            try:
                async with block as connection:
                    async for row in connection.cursor("SELECT pick(id) FROM company_data ORDER BY id"):
                        yield separator + json.dumps(dict(row)).encode()
                        separator = b","
            except asyncpg.DivisionByZeroError:
                app.logger.info("broken")
            yield b"]}"

        return Response(write())

    @app.get("/unsent", host=tenants.host)
    async def unsent() -> ResponseReturnValue:
        await stream_rows("SELECT id FROM company_data ORDER BY id")
        return {}

    @app.get("/everything", host=tenants.host)
    async def everything() -> ResponseReturnValue:
        async with tenant_connection(read_only=True) as connection:
            return {"rows": await connection.fetch(EVERYTHING)}

    @app.get("/everything/streamed", host=tenants.host)
    async def everything_streamed() -> ResponseReturnValue:
        return await stream_rows(EVERYTHING)

    @app.get("/odd", host=tenants.host)
    async def odd() -> ResponseReturnValue:
        return await stream_rows(r'''SELECT 1 AS "a ""b"" \", 2 AS "a ""b"" \", NULL AS "?column?"''')

    async with app.test_app():
        yield app


async def test_view_returns_rows_as_they_are(app: Quart) -> None:
    """A row is an object of its columns in their order, and a JSON column is a part of the answer."""
    answer = await Client(app, "/everything").ask()

    (row,) = answer["rows"]
    assert list(row)[:3] == ["price", "placed_at", "due"]
    assert row == {
        "price": "1.50",
        "placed_at": "2026-11-23T04:50:00Z",
        "due": "2026-11-23",
        "id": "00000000-0000-0000-0000-000000000001",
        "document": {"a": [1.1]},
        "numbers": [1, None],
        "range": {"lower": 1, "upper": 5, "bounds": "[)"},
        "bytes": "AP8=",
        "time": "P1D",
        "pair": [1, "x"],
        "again": 1,
        "nothing": None,
    }


async def test_any_column_can_be_streamed(app: Quart) -> None:
    """Types and names are written as in an answer of one piece, also a name that comes twice or has quotation marks."""
    whole = await Client(app, "/everything").ask()
    streamed = await Client(app, "/everything/streamed").ask()
    odd = await Client(app, "/odd").ask()

    assert streamed["data"] == whole["rows"]
    assert odd["data"] == [{'a "b" \\': 2, "?column?": None}]


async def test_all_rows_are_streamed_in_small_pieces(app: Quart) -> None:
    """Every row comes once and in order, and no piece of the answer is large."""
    client = Client(app, "/all")

    answer = await client.ask()

    assert answer == {"rows": [{"id": n, "description": f"row {n}"} for n in range(1, ROWS + 1)]}
    assert len(client.pieces) > 3
    assert max(map(len, client.pieces)) < 3 * 64 * 1024


@pytest.mark.parametrize("rows", [0, 1, 99, 100, 101, 2100])
async def test_stream_ends_where_the_rows_do(app: Quart, rows: int) -> None:
    """However many rows there are, a full piece that is the last one included, the answer is whole."""
    answer = await Client(app, f"/after/{ROWS - rows}").ask()

    assert [row["id"] for row in answer["data"]] == list(range(ROWS - rows + 1, ROWS + 1))


@pytest.mark.parametrize("path", ["/missing", "/writing"])
async def test_error_before_the_first_row_is_a_problem(app: Quart, path: str) -> None:
    """A statement that PostgreSQL refuses is answered like in any other view, and the connection goes on."""
    client = Client(app, path)

    answer = await client.ask()

    assert (client.status, answer["code"]) == (500, "internal_server_error")
    assert (await Client(app, f"/after/{ROWS}").ask()) == {"data": []}


async def test_error_in_the_middle_leaves_no_whole_answer(app: Quart) -> None:
    """What breaks after the first rows never ends like an answer; a naive stream's rest is missed by nobody."""
    broken, naive = Client(app, "/breaking"), Client(app, "/naive")

    # Quart 0.23 raises it in a group.
    with pytest.raises((asyncpg.DivisionByZeroError, ExceptionGroup)):
        await broken.ask()
    # Negative control.
    truncated = await naive.ask()

    assert (broken.status, broken.complete) == (200, False)
    assert broken.pieces
    with pytest.raises(json.JSONDecodeError):
        json.loads(b"".join(broken.pieces))
    assert naive.complete
    assert 0 < len(truncated["data"]) < BREAKS_AT
    assert (await Client(app, f"/after/{ROWS}").ask()) == {"data": []}


async def test_client_that_goes_away_gives_its_connection_back(app: Quart) -> None:
    """While a client takes nothing its block is open; when it goes away, the next one has the connection at once."""
    slow = Client(app, "/all")
    asking = asyncio.create_task(slow.ask(patience=2))
    await slow.waiting.wait()

    meanwhile = Client(app, f"/after/{ROWS}")
    await meanwhile.ask()
    slow.gone.set()
    await asking
    afterwards = await Client(app, f"/after/{ROWS}").ask()

    assert meanwhile.status == 503
    assert not slow.complete
    assert afterwards == {"data": []}


async def test_slow_client_is_ended_by_the_time_for_an_answer(app: Quart) -> None:
    """A client that takes longer than RESPONSE_TIMEOUT gets no whole answer, and keeps no connection."""
    app.config["RESPONSE_TIMEOUT"] = 0.2
    slow = Client(app, "/all")
    asking = asyncio.create_task(slow.ask(patience=2))

    # The only connection of the pool, while the client is still there: Quart 0.23 ends the request when it leaves.
    await slow.waiting.wait()
    answer = None
    while answer != {"data": []}:
        answer = await Client(app, f"/after/{ROWS}").ask()
    slow.gone.set()
    await asking

    assert not slow.complete


async def test_stream_that_nobody_sends_gives_its_connection_back(app: Quart, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that a view has made and not returned ends with the request; without that its connection is lost."""
    await Client(app, "/unsent").ask()
    assert (await Client(app, f"/after/{ROWS}").ask()) == {"data": []}

    # Negative control: nobody closes it. What holds it here would be a reference of the app's own.
    kept: list[Any] = []

    async def pass_on(middleware: Any, scope: Any, receive: Any, send: Any) -> None:
        await middleware._app(scope, receive, send)
        kept.extend(scope.get(row_streams._STREAMS, ()))

    monkeypatch.setattr(row_streams.StreamEnds, "__call__", pass_on)
    await Client(app, "/unsent").ask()
    starved = Client(app, f"/after/{ROWS}")
    await starved.ask()
    monkeypatch.undo()
    for pieces in kept:
        await pieces.aclose()

    assert starved.status == 503


async def test_head_of_a_stream_opens_no_stream(app: Quart) -> None:
    """A HEAD request is answered without reading all rows."""
    client = Client(app, "/all", "HEAD")

    await client.ask()

    assert (client.status, client.complete, b"".join(client.pieces)) == (200, True, b"")
