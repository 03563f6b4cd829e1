"""Note what one block does and where its time goes, count it at its end, and tell of one that was slow."""

import logging
from time import monotonic

from quart_tenants.audit import log_facts
from quart_tenants.errors import DatabaseTimeoutError, PoolExhaustedError, TenantOverShareError
from quart_tenants.measures.counts import Measures
from quart_tenants.measures.stats import OpenBlock
from quart_tenants.sql_parser import hide_literals
from quart_tenants.tenant import Tenant

_logger = logging.getLogger("quart_tenants.slow")

_LONGEST_STATEMENT = 1000
"""Characters of a statement in the log."""


class BlockRecord:
    """The record of one block. The block and its connection write into it, and nobody else sees it before its end.

    Attributes:
        statements: How many statements the block ran.
        statement_seconds: How long it waited for the server's answers.
        rows: How many rows it read.
        round_trips: How many messages went to the server and back.
        backend: The number of the server process.
        longest: How many seconds the longest of its statements took.
    """

    __slots__ = (
        "_asked_at",
        "_lent_at",
        "_longest_statement",
        "_measures",
        "_shared_at",
        "_span",
        "_tenant",
        "backend",
        "longest",
        "round_trips",
        "rows",
        "statement_seconds",
        "statements",
    )

    def __init__(self, measures: Measures, tenant: Tenant | None) -> None:
        """Begin the record of a block of *tenant*, or of no tenant's, which asks for its share now."""
        self._measures = measures
        self._tenant = tenant
        self._asked_at = monotonic()
        self._shared_at = self._lent_at = 0.0
        self.longest = 0.0
        self._longest_statement = ""
        self.statements = self.rows = self.round_trips = 0
        self.statement_seconds = 0.0
        self.backend = 0
        self._span = None if measures.spans is None else measures.spans.begin_block(tenant)
        measures.open_blocks.add(self)

    def has_share(self) -> None:
        """Note that the block has its share, and asks for a connection."""
        self._shared_at = monotonic()

    def has_connection(self) -> None:
        """Note that the block has a connection."""
        self._lent_at = monotonic()

    def note(self, statement: str, began_at: float, rows: int = 0, error: BaseException | None = None) -> None:
        """Note that *statement* has ended.

        Args:
            statement: Its text.
            began_at: When it was sent, by `time.monotonic()`.
            rows: How many rows it returned.
            error: What it ended by; None if it ended well.
        """
        seconds = monotonic() - began_at
        self.statements += 1
        self.rows += rows
        self.statement_seconds += seconds
        if self._span is not None:
            self._span.add_statement(statement, seconds, rows, error)
        if seconds > self.longest:
            self.longest, self._longest_statement = seconds, statement

    def end(self, error: BaseException | None) -> None:
        """Count the block, which has ended by *error* or well."""
        now = monotonic()
        measures, tenant = self._measures, self._tenant
        measures.open_blocks.discard(self)
        seconds = now - self._asked_at
        shared_at = self._shared_at or now
        lent_at = self._lent_at or now
        measures.share_wait_seconds += shared_at - self._asked_at
        measures.connection_wait_seconds += lent_at - shared_at
        measures.block_durations.add(seconds)
        measures.round_trips += self.round_trips
        if error is not None:
            self._count_failure(error)
        counts = measures.tenants.get(tenant)
        counts.blocks += 1
        counts.block_seconds += seconds
        counts.statements += self.statements
        counts.statement_seconds += self.statement_seconds
        counts.rows += self.rows
        if self._span is not None:
            waits = shared_at - self._asked_at, lent_at - shared_at
            self._span.end(self.rows, self.round_trips, *waits, error)
        if seconds >= measures.slow_block:
            measures.slow_blocks += 1
            self._tell(seconds, shared_at - self._asked_at, lent_at - shared_at)

    def describe(self, now: float) -> OpenBlock:
        """Return what is known of the block *now*, before its end."""
        state = "open" if self._lent_at else "connection" if self._shared_at else "share"
        slug = None if self._tenant is None else str(self._tenant.slug)
        return OpenBlock(slug, state, now - self._asked_at, self.backend or None)

    def _count_failure(self, error: BaseException) -> None:
        measures = self._measures
        measures.failed_blocks += 1
        if not self._shared_at:
            measures.refused_by_share += isinstance(error, TenantOverShareError | PoolExhaustedError)
            measures.refused_as_stuck += isinstance(error, DatabaseTimeoutError)
        elif not self._lent_at:
            measures.refused_by_pool += isinstance(error, PoolExhaustedError)

    def _tell(self, seconds: float, share: float, connection: float) -> None:
        # The log adds the request's id. The tenant is that of the block, which a job may have chosen.
        statement = hide_literals(self._longest_statement) if self._longest_statement else None
        if statement is not None and len(statement) > _LONGEST_STATEMENT:
            statement = f"{statement[:_LONGEST_STATEMENT]}…"
        log_facts(
            _logger,
            logging.WARNING,
            "slow_block",
            {
                "tenant": None if self._tenant is None else self._tenant.slug,
                "seconds": round(seconds, 3),
                "share_seconds": round(share, 3),
                "connection_seconds": round(connection, 3),
                "server_seconds": round(self.statement_seconds, 3),
                "statements": self.statements,
                "rows": self.rows,
                "longest_seconds": round(self.longest, 3),
                "longest_statement": statement,
            },
        )
