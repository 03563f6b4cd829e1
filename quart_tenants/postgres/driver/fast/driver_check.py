"""Try out whether this asyncpg has, and does, what the fast connection needs of its inside."""

import inspect

import asyncpg
import asyncpg.pool
import asyncpg.transaction

from quart_tenants.postgres.driver.block_statements import BEGIN, Beginning
from quart_tenants.postgres.driver.fast.fast_connection import FastConnection

_CONNECTION_METHODS: dict[str, tuple[str, ...]] = {
    "_cancel": ("waiter",),
    "_cancel_current_command": ("waiter", "cancel_waiter"),
    "_copy_in": ("copy_stmt", "source", "timeout"),
    "_copy_out": ("copy_stmt", "output", "timeout"),
    "_drop_global_statement_cache": (),
    "_drop_global_type_cache": (),
    "_drop_local_statement_cache": (),
    "_drop_local_type_cache": (),
    "_execute": ("query", "args", "limit", "timeout", "return_status", "ignore_custom_codec", "record_class"),
    "_executemany": ("query", "args", "timeout"),
    "_get_statement": ("query", "timeout", "named", "use_cache", "ignore_custom_codec", "record_class"),
    "_introspect_types": ("typeoids", "timeout"),
}
"""What is called or overridden of asyncpg's connection, with the parameters that are given by name or in this order."""
_CONNECTION_ATTRIBUTES = (
    "_cancellations", "_listeners", "_log_listeners", "_loop", "_pool_release_ctr", "_protocol", "_proxy",
    "_query_loggers", "_server_caps", "_stmts_to_close", "_top_xact", "_transport",
)  # fmt: skip
_PROTOCOL_ATTRIBUTES = ("bind_execute", "get_settings", "is_in_transaction", "queries_count", "query")

_BEGINNING = Beginning((BEGIN, "SET LOCAL search_path TO pg_catalog"))
# It only reads. A connection's own path is empty.
_SEE_PATH = "SELECT pg_catalog.current_schemas(false)::pg_catalog.text[], $1::pg_catalog.int8"


class DriverMisfitError(Exception):
    """This asyncpg is not the one that the fast connection knows."""


def find_misfit() -> str | None:
    """Return what asyncpg's classes lack, or None."""
    for name, parameters in _CONNECTION_METHODS.items():
        method = getattr(asyncpg.Connection, name, None)
        if method is None:
            return f"asyncpg.Connection has no {name}()"
        known = list(inspect.signature(method).parameters)[1:]
        if known[: len(parameters)] != list(parameters):
            return f"asyncpg.Connection.{name}() takes {', '.join(known) or 'nothing'}"
    if not hasattr(asyncpg.pool.PoolConnectionProxy, "_con"):
        return "asyncpg's PoolConnectionProxy has no _con"
    return None


async def try_out(connection: FastConnection) -> None:
    """Run a few blocks on *connection*, which is new.

    Raises:
        DriverMisfitError: It does not do what it should.
        AttributeError: The same, and so does any other error that is not the network's.
    """
    for name in _CONNECTION_ATTRIBUTES:
        _expect(hasattr(connection, name), f"a connection has no {name}")
    protocol = connection._protocol  # noqa: SLF001
    for name in _PROTOCOL_ATTRIBUTES:
        _expect(hasattr(protocol, name), f"the protocol has no {name}")
    _expect(hasattr(connection.transaction(), "_connection"), "a transaction has no _connection")
    _expect(hasattr(connection.transaction(), "_con_release_ctr"), "a transaction has no _con_release_ctr")

    connection.plan_block(_BEGINNING, 5, _has_no_other)
    for number in (1, 2):
        # The second time by the kept statement.
        seen = await connection.fetchrow(_SEE_PATH, number)
        _expect(seen is not None and tuple(seen) == (["pg_catalog"], number), f"a read returned {seen!r}")
        _expect(not protocol.is_in_transaction(), "a read's COMMIT was not sent with it")
    _expect(connection.is_in_transaction(), "asyncpg does not ask is_in_transaction()")
    async with connection.transaction():
        # More than a read: the block's transaction begins now.
        await connection.execute("SELECT 1")
    _expect(protocol.is_in_transaction(), "a block had no transaction")
    _expect(await connection.fetchval(_SEE_PATH, 3) == ["pg_catalog"], "a block had no path")
    await connection.end_block(commit=True)
    connection.let_go()
    _expect(not protocol.is_in_transaction(), "a block's transaction did not end")
    _expect(await connection.fetchval(_SEE_PATH, 4) != ["pg_catalog"], "a block's path did not end")


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise DriverMisfitError(otherwise)


async def _has_no_other(reads: bool) -> FastConnection:
    raise DriverMisfitError("a block asked for another connection")
