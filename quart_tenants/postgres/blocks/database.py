"""Lend connections that see one tenant. The only place that sets search_path.

Each block is a transaction, `BEGIN; SET LOCAL search_path TO "acme"` … `COMMIT`, and each statement that only reads
before it is a transaction of its own. `SET LOCAL` ends with its transaction whatever happens, which is why this
is safe under cancellation and behind a pooler where a session-level `SET` is not. The connection's own
default path is empty: outside a transaction of ours there are no tables.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from functools import lru_cache
from typing import Self

from quart_tenants.errors import DatabaseRefusedError, RolesNotReadyError, SettingError
from quart_tenants.measures.counts import Measures
from quart_tenants.measures.stats import PoolStats
from quart_tenants.postgres.blocks.block import Block, list_path
from quart_tenants.postgres.blocks.own_sessions import connect_once, find_own_url, open_own_session
from quart_tenants.postgres.blocks.shares import Shares
from quart_tenants.postgres.driver.block_statements import BEGIN, BEGIN_READ_ONLY, EVERYBODY, Beginning, TenantKey
from quart_tenants.postgres.driver.connection_types import (
    DRIVER_ERRORS,
    Connection,
    DriverConnection,
    explain_no_connection,
)
from quart_tenants.postgres.driver.opening import SetUp
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.postgres.pool.connection_pool import ConnectionPool
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Tenant

DEFAULTS = {"search_path": '""', "application_name": "quart_tenants", "client_encoding": "UTF8"}
"""Of every connection. Outside a block it sees no tables: "" is the name of no schema.

Of nothing at all, a pooler that passes the path on would make a statement that ends after the =. The encoding is
written as the server does it, because the driver writes it in another way, and an old PgBouncer would set it before
each transaction.
"""
# After so many the pool replaces a connection. Four migrate a tenant, a dozen make one.
_QUERIES = 50_000
_QUERIES_FOR_MANY_TENANTS = 4_000


class Database:
    """One asyncpg pool, lent block by block.

    Example:
        ```python
        async with await Database.open(settings, max_size=1) as opened:
            tenant = await get_tenant(opened, parse_slug("acme"))
            async with opened.tenant_connection(tenant) as connection:
                print(await connection.fetchval("SELECT current_schema()"))
        ```
    """

    def __init__(self, pool: ConnectionPool, settings: Settings, *, shares: Shares | None = None) -> None:
        self._pool = pool
        self._settings = settings
        self._shares = shares
        # Where each tenant lies in a cluster, by numbers. The registry writes it.
        self.nodes: dict[int, int] = {} if shares is None else shares.nodes
        # Once it was tried.
        self._own_url: str | None = None

    @classmethod
    async def open(
        cls,
        settings: Settings,
        *,
        max_size: int | None = None,
        for_many_tenants: bool = False,
        set_up: SetUp | None = None,
        timings: Timings | None = None,
        measures: Measures | None = None,
    ) -> Self:
        """Connect to the database that *settings* name.

        Args:
            settings: Timeouts, sizes and the address.
            max_size: Connections at most; default: the setting. A command needs one or two, and gives no
                tenant a share of those: nobody else waits for them.
            for_many_tenants: Whether each connection will see thousands of them. It is then replaced
                now and then: a server process remembers the tables that it has touched until it ends.
            set_up: Called with each new connection, such as for type codecs. There are no tables on its path.
            timings: How long to wait for what, for tests.
            measures: What the blocks are counted in, where anybody asks for it.

        Raises:
            SettingError: The address is missing or malformed.
            DatabaseUnavailableError: Nobody answers there, or not to us.
        """
        size = max_size or settings.pool_max_size
        share = settings.tenant_pool_share or max(1, size // 2)
        shares = None
        if max_size is None and share < size:
            # An eighth of the pool for all stuck tenants leaves the others more than 80 % of it.
            apart = max(1, size // 8)
            shares = Shares(share, settings.tenant_pool_queue, apart=apart, stuck_after=settings.stuck_after)
        try:
            pool = ConnectionPool(
                settings,
                # Whoever says how many it needs is a command: nobody waits for a connection after its last one.
                min_size=settings.pool_min_size if max_size is None else 0,
                max_size=size,
                max_queries=_QUERIES_FOR_MANY_TENANTS if for_many_tenants else _QUERIES,
                defaults=DEFAULTS,
                timings=timings or Timings(),
                measures=measures or Measures(),
                set_up=set_up,
            )
            await pool.open(settings.connect_timeout)
        except (ValueError, *DRIVER_ERRORS) as error:
            raise explain_no_connection(error, "TENANTS_DATABASE_URL", "cannot connect to the database") from error
        return cls(pool, settings, shares=shares)

    def show_pool(self) -> PoolStats:
        """Return the figures of the pool."""
        measures = self._pool.measures
        size, idle = self._pool.count_connections()
        states = [block.state for block in measures.list_open_blocks()]
        return PoolStats(
            size=size,
            max_size=self._pool.max_size,
            idle=idle,
            waiting_for_share=states.count("share"),
            waiting_for_connection=states.count("connection"),
            share_wait_seconds=measures.share_wait_seconds,
            connection_wait_seconds=measures.connection_wait_seconds,
            refused_by_share=measures.refused_by_share,
            refused_by_pool=measures.refused_by_pool,
            refused_as_stuck=measures.refused_as_stuck,
            stuck_tenants=0 if self._shares is None else self._shares.count_stuck(),
            opened=measures.connections_opened,
            closed=dict(measures.connections_closed),
        )

    async def close(self) -> None:
        """Close the pool: wait up to the command timeout for blocks that are open, then cut them off."""
        try:
            async with asyncio.timeout(self._settings.command_timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def tenant_connection(
        self,
        tenant: Tenant,
        *,
        first: str = "",
        read_only: bool = False,
        without_role: bool = False,
        shared_version: int = 0,
        is_known: bool = False,
    ) -> Block:
        """Return a block that lends a connection which sees *tenant*'s tables and those that all tenants share.

        `async with` lends it; a transaction begins with the first statement that does more than read. Leaving the
        block commits it, leaving it by an exception or a cancellation rolls it back. Blocks do not nest: an inner one
        is a transaction of its own on a connection of its own.

        Args:
            tenant: Whose tables the block sees.
            first: SQL that goes to the server together with BEGIN, for what must save a message. The block's
                `status` is that of its last statement, and entering the block raises what PostgreSQL refuses.
            read_only: Whether the server refuses every write in this block.
            without_role: Whether the block acts as the login even where tenants have roles. For migrations.
            shared_version: The version of the shared tables. Statements of another version are not used again.
            is_known: Whether the registry has just said that *tenant* is served. Otherwise the server is asked whether
                the tenant still has its schema; and again where a transaction begins more than half a second later.

        Raises:
            PoolExhaustedError: No connection came free within `TENANTS_ACQUIRE_TIMEOUT`, or none of the tenant's share.
            TenantOverShareError: More than `TENANTS_TENANT_POOL_QUEUE` of the tenant's blocks wait for its share.
            DatabaseUnavailableError: The database cannot be reached, or was lost inside the block.
            DatabaseTimeoutError: A statement took longer than `TENANTS_COMMAND_TIMEOUT`, or the tenant's last blocks
                timed out, and this one got no answer in two seconds.
            TransactionLostError: The block ended without an error, but nothing could be saved.
            UnknownTenantError: The tenant was dropped. Its schema may be another tenant's by now.
            RegistryNotReadyError: There is no registry to ask about that, or the login may not read it.
            RolesNotReadyError: Tenants have roles of their own, and this one has none, or it cannot be entered.
        """
        with_role = self._settings.role_per_tenant and not without_role
        if with_role and tenant.role is None:
            # A block never acts as the login instead.
            raise RolesNotReadyError(f"tenant {tenant.slug!r} has no role of its own yet: run quart-tenants init")
        beginning = _begin(tenant, read_only, with_role, self._settings.shared_schemas, shared_version)
        timeout = self._settings.acquire_timeout
        return Block(self._pool, beginning, timeout, tenant, first, self._shares, is_known=is_known)

    def connection(self) -> Block:
        """Return a block with an empty path, for statements that write every name in full.

        Raises the same errors as `tenant_connection`.
        """
        return Block(self._pool, _BEGIN_WITHOUT_TENANT, self._settings.acquire_timeout)

    async def go_on_in(self, block: Block, tenant: Tenant) -> None:
        """Let the rest of *block* be as one of *tenant*: on its path, as its role. *tenant* was made in this block."""
        settings = self._settings
        await block.go_on_as(_begin(tenant, False, settings.role_per_tenant, settings.shared_schemas, 0))

    def shared_connection(self, *, shared_version: int = 0) -> Block:
        """Return a block that sees the shared schemas only, and may write there. It acts as the login.

        Args:
            shared_version: The version of the shared tables. Statements of another version are not used again.

        Raises:
            SettingError: `TENANTS_SHARED_SCHEMAS` names none.

        Entering and leaving the block raise the same errors as `tenant_connection`.
        """
        schemas = self._settings.shared_schemas
        if not schemas:
            raise SettingError("TENANTS_SHARED_SCHEMAS", "names no schema: there are no shared tables")
        beginning = Beginning((BEGIN, _set_path(*schemas)), tenant=TenantKey(EVERYBODY, 0, shared_version))
        return Block(self._pool, beginning, self._settings.acquire_timeout)

    @contextlib.asynccontextmanager
    async def plain_session(self) -> AsyncIterator[DriverConnection]:
        """Lend a connection of its own, opened as those of the pool are, outside any transaction, and close it.

        For looking at what a pooler, or a setting of the role, makes of it.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
        """
        settings = self._settings
        connection = await connect_once(
            settings, "one more session", DEFAULTS, command_timeout=settings.command_timeout
        )
        try:
            yield connection
        finally:
            with contextlib.suppress(*DRIVER_ERRORS):
                await connection.close(timeout=self._settings.connect_timeout)

    async def get_own_url(self, purpose: str) -> str:
        """Return the URL by which a program, such as pg_dump, has a server process to itself in this database.

        Args:
            purpose: Why that is needed, such as `pg_dump`.

        Raises the errors of `session`.
        """
        if self._own_url is None:
            connection = await open_own_session(self._settings, DEFAULTS, purpose)
            connection.terminate()
            self._own_url, _ = find_own_url(self._settings)
        return self._own_url

    @contextlib.asynccontextmanager
    async def session(self, *schemas: SchemaName) -> AsyncIterator[DriverConnection]:
        """Lend a connection of its own that sees *schemas* and the shared ones outside any transaction, and close it.

        For what PostgreSQL refuses in a transaction. No pooler may stand between, which would lend to others what is
        set here, and the locks of the session.

        Raises:
            SettingError: `TENANTS_DIRECT_DATABASE_URL` leads elsewhere.
            DatabaseUnavailableError: The database cannot be reached.
            DatabaseRefusedError: A pooler stands between, or the path is not what was asked for.
        """
        path = (*schemas, *self._settings.shared_schemas)
        defaults = DEFAULTS | {"search_path": _write_path(path)}
        connection = await open_own_session(self._settings, defaults, "what runs outside a transaction")
        try:
            if await list_path(connection) != [schema.name for schema in path]:
                raise DatabaseRefusedError(
                    f"a connection for schema {path[0].name!r} sees something else: a schema is missing"
                )
            yield connection
        finally:
            # Waits until a statement that was interrupted is cancelled. terminate() would let it go on.
            with contextlib.suppress(*DRIVER_ERRORS):
                await connection.close(timeout=self._settings.connect_timeout)


def list_tenant_path(schema: SchemaName, settings: Settings) -> list[str]:
    """Return the schemas that a block of the tenant with *schema* sees, in their order."""
    return [schema.name, *settings.shared_names]


async def enter_schema(connection: Connection, schema: SchemaName, *, settings: Settings) -> None:
    """Let the rest of the transaction on *connection* see *schema* and the shared ones. For making its tables."""
    await connection.execute(_set_path(schema, *settings.shared_schemas))


# Also where a pooler has dropped the connection's own empty path.
_BEGIN_WITHOUT_TENANT = Beginning((BEGIN, "SET LOCAL search_path TO ''"))


@lru_cache(maxsize=4096)
def _begin(
    tenant: Tenant, read_only: bool, with_role: bool, shared: tuple[SchemaName, ...], shared_version: int
) -> Beginning:
    begin = BEGIN_READ_ONLY if read_only else BEGIN
    role = (f"SET LOCAL ROLE {tenant.role.quoted}",) if with_role and tenant.role is not None else ()
    return Beginning(
        (begin, *role, _set_path(tenant.schema, *shared)),
        with_role=with_role,
        tenant=TenantKey(tenant.id, tenant.version, shared_version),
    )


def _set_path(*schemas: SchemaName) -> str:
    # PostgreSQL accepts a path whose schema is missing, so a dropped tenant fails with "relation does
    # not exist". `public` is left off on purpose, unless the operator shares it: the same query would read rows there.
    # A name that is in both is refused elsewhere, because a dropped table must not fall through to a shared one.
    return f"SET LOCAL search_path TO {_write_path(schemas)}"


def _write_path(schemas: Iterable[SchemaName]) -> str:
    return ", ".join(schema.quoted for schema in schemas)
