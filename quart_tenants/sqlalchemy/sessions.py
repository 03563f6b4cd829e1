"""Sessions of SQLAlchemy in the blocks of tenants."""

import functools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from quart_tenants.connection import Connection
from quart_tenants.sqlalchemy.block_dialect import DRIVER, BorrowedConnection
from quart_tenants.tenant import Tenant
from quart_tenants.web.context import shared_connection, tenant_connection

_borrowed: ContextVar[BorrowedConnection] = ContextVar("quart_tenants_borrowed")


async def _get_borrowed() -> BorrowedConnection:
    return _borrowed.get()


@functools.cache
def _get_engine() -> AsyncEngine:
    # It keeps no connections, so all loops and all apps can share it, with what it has compiled.
    return create_async_engine(DRIVER + "://", async_creator=_get_borrowed, poolclass=NullPool)


def session_on(connection: Connection, **options: Any) -> AbstractAsyncContextManager[AsyncSession]:
    """Lend a session of SQLAlchemy on *connection*, which a block has lent: it sees what the block sees.

    Leaving the context commits the session, leaving it by an exception undoes what it did since its last commit. Its
    transaction is a savepoint in the block's, so all is saved when the block ends without an error.

    Args:
        connection: Such as the one that `create(…, fill=…)` hands over.
        options: Of `AsyncSession`. `expire_on_commit` is False, because nothing can be loaded without an await.
    """
    return _open(connection, options, goes_on=True)


@asynccontextmanager
async def _open(connection: Connection, options: dict[str, Any], *, goes_on: bool) -> AsyncIterator[AsyncSession]:
    """Lend a session on *connection*. *goes_on*: whether the block may go on after it."""
    borrowed = BorrowedConnection(connection)
    token = _borrowed.set(borrowed)
    try:
        engine_connection = await _get_engine().connect()
    finally:
        _borrowed.reset(token)
    session = AsyncSession(engine_connection, **({"expire_on_commit": False} | options))
    try:
        yield session
        await session.flush()
        borrowed.is_ending = not goes_on
        await session.commit()
    except BaseException as error:
        # A block that is cancelled, or has lost its connection, does not go on.
        borrowed.is_ending = not goes_on or not isinstance(error, Exception) or connection.is_closed()
        raise
    finally:
        await session.close()
        await engine_connection.close()


def tenant_session(
    tenant: Tenant | str | None = None, *, read_only: bool = False, **options: Any
) -> AbstractAsyncContextManager[AsyncSession]:
    """Return a block that lends a session of SQLAlchemy which sees one tenant's tables and no others.

    `async with tenant_session() as session:` is one transaction, like a block of `tenant_connection`. Leaving it
    commits what was added and changed; leaving it by an exception or a cancellation undoes all of it. Inside it
    `session.commit()` flushes and ends no transaction, and `session.rollback()` goes back to the last commit.

    Args:
        tenant: A tenant, or its slug. Default: the current one.
        read_only: Whether PostgreSQL refuses every write in this block.
        options: Of `AsyncSession`. `expire_on_commit` is False, because nothing can be loaded without an await.

    Raises:
        TenantError: What `tenant_connection` raises. A refused statement is one of `sqlalchemy.exc`'s errors; a
            deferred constraint that is refused when the block ends is asyncpg's.
    """
    return _lend(tenant_connection(tenant, read_only=read_only), options)


def shared_session(**options: Any) -> AbstractAsyncContextManager[AsyncSession]:
    """Return a block that lends a session which sees the shared schemas only: see `shared_connection`.

    Args:
        options: Of `AsyncSession`.

    Raises:
        TenantError: What `shared_connection` raises.
    """
    return _lend(shared_connection(), options)


@asynccontextmanager
async def _lend(block: AbstractAsyncContextManager[Connection], options: dict[str, Any]) -> AsyncIterator[AsyncSession]:
    refused: DBAPIError | None = None
    cause: BaseException | None = None
    try:
        async with block as connection:
            try:
                async with _open(connection, options, goes_on=False) as session:
                    yield session
            except DBAPIError as error:
                # The block knows by asyncpg's errors that the tenant is gone, or the server.
                cause = None if error.orig is None else error.orig.__cause__
                if cause is None:
                    raise
                refused = error
                raise cause from None
    except BaseException as error:
        if refused is not None and error is cause:
            raise refused from cause
        raise
