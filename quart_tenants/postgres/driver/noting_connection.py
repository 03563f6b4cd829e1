"""What both kinds of connections have in common: they note what a block leaves behind where no reset reaches it."""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar

import asyncpg

from quart_tenants.measures.block_record import BlockRecord
from quart_tenants.measures.counts import Measures
from quart_tenants.postgres.driver.block_statements import (
    BEGIN,
    COMMIT,
    RESET_AHEAD,
    ROLLBACK,
    Beginning,
    TenantKey,
)
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS
from quart_tenants.postgres.driver.timings import Timings

if TYPE_CHECKING:
    _AsyncpgConnection = asyncpg.Connection[asyncpg.Record]
else:
    _AsyncpgConnection = asyncpg.Connection

T = TypeVar("T")

_UTF8 = ("UTF8", "UTF-8")
# What stands before the text of a value in PostgreSQL's binary format: for jsonb its version.
_JSON_PREFIXES = {"json": b"", "jsonb": b"\x01"}


class NotingConnection(_AsyncpgConnection):
    """A connection of asyncpg's on which blocks are run.

    What a block sets in the client, such as a type codec, lasts until its end: then the connection is closed.

    Attributes:
        altered: Whether a block has set what stays in the client, where no reset reaches it.
        is_alone: Whether it is known that no pooler lends the server process to others, too.
        ready_at: When it was ready for its first block, by the event loop's clock.
        proxy: The handle by which asyncpg's pool knows this connection.
        record: What the present block does is noted here; of what comes between two blocks, nobody reads the notes.
    """

    __slots__ = ("_json_is_text", "_timings", "_versions", "altered", "is_alone", "proxy", "ready_at", "record")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.altered = False
        self.is_alone = False
        self._json_is_text = False
        self.proxy: Any = None
        self.ready_at = float("-inf")
        self.record = BlockRecord(Measures(), None)
        self._timings = Timings()
        # Of each tenant, and of the shared tables, in its last block here.
        self._versions: dict[int, TenantKey] = {}

    @property
    def itself(self) -> Self:
        """This connection, also when it is asked of asyncpg's handle, which forgets whom it stands for."""
        return self

    async def finds(self, question: str, within: float) -> bool:
        """Return whether *question*, which is asked between two transactions, finds a row within so many seconds.

        Raises the driver's errors.
        """
        # Behind a pooler somebody else may have left a role on the server process that may not read the registry.
        script = question if self.is_alone else "; ".join((*RESET_AHEAD, question))
        return await asyncpg.Connection.execute(self, script, timeout=within) != "SELECT 0"

    async def begins_again(self, beginning: Beginning, question: str, within: float) -> bool:
        """Begin the open transaction, in which nothing was done, once more; return whether *question* finds a row.

        All goes in one message, so that nothing can happen in between, however long that message is on its way. The
        transaction itself has no query yet. If there is no row, it has failed.

        Raises the driver's errors.
        """
        # A script has no way to end early but an error.
        check = f"SELECT 1 / pg_catalog.count(*) FROM ({question}) AS found"  # noqa: S608  (of our own)
        script = "; ".join((ROLLBACK, BEGIN, check, COMMIT, *beginning.statements))
        try:
            await asyncpg.Connection.execute(self, script, timeout=within)
        except asyncpg.DivisionByZeroError:
            return False
        return True

    async def _run_noted(self, query: str, running: Awaitable[T], count_rows: Callable[[T], int] | None = None) -> T:
        """Return what *running* returns, and note the statement in the block's record, well ended or not."""
        began_at = monotonic()
        try:
            result = await running
        except BaseException as error:
            self.record.note(query, began_at, error=error)
            raise
        self.record.note(query, began_at, 0 if count_rows is None else count_rows(result))
        return result

    def keep_as_it_is(self) -> None:
        """Take what was set so far for what every block is to have: the connection is ready."""
        self.altered = False
        self.ready_at = asyncio.get_running_loop().time()

    def note_versions(self, tenant: TenantKey) -> bool:
        """Note that a block of *tenant* begins; return whether its tables were at another version in its last block.

        asyncpg remembers of a composite type which attributes it has. If a migration has changed them, it would read
        a value by the old names, and write it in the old order.
        """
        before = self._versions.get(tenant.tenant)
        self._versions[tenant.tenant] = tenant
        return before is not None and before != tenant

    async def prepare(self, query: str, *, name: str | None = None, **options: Any) -> Any:
        """Prepare *query*, as asyncpg does it; the server has it under a name until the block's end."""
        return await super().prepare(query, name=name or make_name(), **options)

    async def set_type_codec(
        self,
        typename: str,
        *,
        schema: str = "public",
        encoder: Callable[[Any], Any],
        decoder: Callable[[Any], Any],
        format: str = "text",  # noqa: A002  (asyncpg's name)
    ) -> None:
        """Set it, as asyncpg does it: for this block, after which the connection is closed.

        One for JSON that takes and returns texts also serves COPY, which asyncpg does in binary only.
        """
        self.altered = True
        is_json = schema == "pg_catalog" and typename in _JSON_PREFIXES
        if is_json and (format == "binary" or self.get_settings().client_encoding.upper() in _UTF8):
            encoder, decoder = self._make_json_codec(_JSON_PREFIXES[typename], encoder, decoder, texts=format == "text")
            format = "binary"  # noqa: A001
        await super().set_type_codec(typename, schema=schema, encoder=encoder, decoder=decoder, format=format)

    def _make_json_codec(
        self, prefix: bytes, encoder: Callable[[Any], Any], decoder: Callable[[Any], Any], *, texts: bool
    ) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
        """Return a binary codec that does what *encoder* and *decoder* do, unless JSON is to be text now."""

        def encode(value: Any) -> bytes:
            written: Any = value if self._json_is_text else encoder(value)
            is_text = texts or self._json_is_text
            return prefix + written.encode() if is_text else written  # type: ignore[no-any-return]

        def decode(data: bytes) -> Any:
            if self._json_is_text:
                return data[len(prefix) :].decode()
            return decoder(data[len(prefix) :].decode() if texts else data)

        return encode, decode

    @contextlib.contextmanager
    def json_as_text(self) -> Iterator[None]:
        """Let the parameters and results of JSON types be texts in the context, whatever codec was set for them."""
        before, self._json_is_text = self._json_is_text, True
        try:
            yield
        finally:
            self._json_is_text = before

    async def reset_type_codec(self, *args: Any, **options: Any) -> None:
        """Reset it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        await super().reset_type_codec(*args, **options)

    async def set_builtin_type_codec(self, *args: Any, **options: Any) -> None:
        """Set it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        await super().set_builtin_type_codec(*args, **options)

    async def add_listener(self, *args: Any) -> None:
        """Refuse it: a transaction hears nothing, and at its end the connection is another's.

        Raises:
            asyncpg.InterfaceError: Always.
        """
        raise asyncpg.InterfaceError(
            "a block hears no notifications: use quart_tenants.subscribe(), or a connection of your own"
        )

    def add_query_logger(self, callback: Any) -> None:
        """Add it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        super().add_query_logger(callback)

    def add_termination_listener(self, *args: Any) -> None:
        """Add it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        super().add_termination_listener(*args)

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  (overrides asyncpg's)
        """Close it, politely if that is quick. Raises nothing but a cancellation: it is closed either way."""
        cleanup = self._timings.cleanup
        with contextlib.suppress(*DRIVER_ERRORS):
            await super().close(timeout=cleanup if timeout is None else min(timeout, cleanup))


def make_name() -> str:
    """Return a name for a prepared statement that no other client has.

    Should a pooler swap the server process, the statement is not found on the other one.
    """
    return f"quart_tenants_{secrets.token_hex(8)}"
