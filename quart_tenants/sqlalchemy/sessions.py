"""Sessions of SQLAlchemy in the blocks of tenants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from quart_tenants.connection import Connection
from quart_tenants.sqlalchemy.block_dialect import DRIVER, BorrowedConnection
from quart_tenants.sqlalchemy.owned_objects import OwnedSession, keep_to
from quart_tenants.tenant import Tenant
from quart_tenants.web.context import get_current_tenant, shared_connection, tenant_connection

_SHARED = "the shared schemas"
_lent: ContextVar[BorrowedConnection] = ContextVar("quart_tenants_lent_to_sqlalchemy")
# They keep no connections: what they have is the statements that they have compiled.
_engines: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncEngine] = WeakKeyDictionary()


def tenant_session(
    tenant: Tenant | str | None = None, *, read_only: bool = False, **options: Any
) -> AbstractAsyncContextManager[AsyncSession]:
    """Return a block that lends a session of SQLAlchemy which sees one tenant's tables and no others.

    `async with tenant_session() as session:` is one transaction, like a block of `tenant_connection`. Leaving it
    commits what was added and changed; leaving it by an exception or a cancellation undoes all of it. Inside it
    `session.commit()` flushes and ends no transaction, and `session.rollback()` goes back to the last commit.

    An object that was loaded or saved for another tenant cannot be added or merged here.

    Args:
        tenant: A tenant, or its slug. Default: the current one.
        read_only: Whether PostgreSQL refuses every write in this block.
        options: Of `AsyncSession`. `expire_on_commit` is False, because nothing can be loaded without an await.

    Raises:
        TenantError: What `tenant_connection` raises. A refused statement is one of `sqlalchemy.exc`'s errors; a
            deferred constraint that is refused when the block ends is asyncpg's.

    If a statement was interrupted, such as by `asyncio.timeout()` inside the block, the session can do no more, and
    leaving the block undoes everything and raises `sqlalchemy.exc.InvalidRequestError`.

    Example:
        ```python
        async with tenant_session() as session:
            orders = (await session.scalars(text("SELECT id FROM orders"))).all()
        ```
    """
    given = get_current_tenant() if tenant is None else tenant
    owner = given.slug if isinstance(given, Tenant) else given
    return _lend(tenant_connection(given, read_only=read_only), owner, options)


def shared_session(**options: Any) -> AbstractAsyncContextManager[AsyncSession]:
    """Return a block that lends a session which sees the shared schemas only: see `shared_connection`.

    Args:
        options: Of `AsyncSession`.

    Raises:
        TenantError: What `shared_connection` raises.

    Example:
        ```python
        async with shared_session() as session:
            await session.execute(text("UPDATE plans SET price = 900 WHERE id = 1"))
        ```
    """
    return _lend(shared_connection(), _SHARED, options)


@asynccontextmanager
async def session_on(connection: Connection, **options: Any) -> AsyncIterator[AsyncSession]:
    """Lend a session of SQLAlchemy on *connection*, which a block has lent: it sees what the block sees.

    Leaving the context commits the session, leaving it by an exception or a cancellation undoes what it did, and the
    block may go on. All is saved when the block ends without an error. Use one session at a time on a connection.

    Args:
        connection: Such as the one that `create(…, fill=…)` hands over.
        options: Of `AsyncSession`. `expire_on_commit` is False, because nothing can be loaded without an await.

    Raises:
        sqlalchemy.exc.DBAPIError: PostgreSQL refused a statement, or what is written when the context is left.

    Example:
        ```python
        async def add_first_user(connection: Connection) -> None:
            async with session_on(connection) as session:
                await session.execute(text("INSERT INTO users (email) VALUES ('ada@acme.test')"))

        await tenants.create("acme", fill=add_first_user)
        ```
    """
    async with connection.transaction(), _open(connection, options) as session:
        yield session


@asynccontextmanager
async def _lend(
    block: AbstractAsyncContextManager[Connection], owner: str, options: dict[str, Any]
) -> AsyncIterator[AsyncSession]:
    refused: DBAPIError | None = None
    cause: BaseException | None = None
    try:
        async with block as connection:
            try:
                async with _open(connection, options) as session:
                    keep_to(session, owner)
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


@asynccontextmanager
async def _open(connection: Connection, options: dict[str, Any]) -> AsyncIterator[AsyncSession]:
    """Lend a session on *connection*. After an error somebody else undoes what it did."""
    borrowed = BorrowedConnection(connection)
    token = _lent.set(borrowed)
    try:
        engine_connection = await _get_engine().connect()
    finally:
        _lent.reset(token)
    own: dict[str, Any] = {"expire_on_commit": False, "sync_session_class": OwnedSession}
    try:
        session = AsyncSession(engine_connection, **(own | options))
        try:
            yield session
            borrowed.check_usable()
            if session.in_transaction():
                await session.commit()
            borrowed.check_usable()
        except BaseException:
            borrowed.is_ending = True
            raise
        finally:
            await session.close()
    finally:
        await engine_connection.close()


def _get_engine() -> AsyncEngine:
    loop = asyncio.get_running_loop()
    engine = _engines.get(loop)
    if engine is None:
        engine = create_async_engine(DRIVER + "://", async_creator=_get_lent, poolclass=NullPool)
        _engines[loop] = engine
    return engine


async def _get_lent() -> BorrowedConnection:
    """Return the connection for which an engine was asked. An engine that asks by itself gets none."""
    borrowed = _lent.get(None)
    if borrowed is None:
        raise InvalidRequestError(
            "this session has no connection any more, because a statement was interrupted: leave the block"
        )
    return borrowed
