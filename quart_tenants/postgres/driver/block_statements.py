"""What begins, ends and resets every block."""

from dataclasses import dataclass

from quart_tenants.postgres.driver.statement_cache import NOBODY, TenantKey

BEGIN = "BEGIN"
BEGIN_READ_ONLY = "BEGIN READ ONLY"

COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
CHECKED_COMMIT = ("SELECT", COMMIT)
"""The empty SELECT fails in a transaction that an error has already doomed.

Without it COMMIT would answer "ROLLBACK" there without an error, and the caller would believe that its rows are saved.
"""

RESET = (
    # It returns no row, so that it may go ahead of a statement that does.
    "SELECT FROM (VALUES (1)) AS once WHERE pg_catalog.pg_advisory_unlock_all() IS NULL",
    "CLOSE ALL",
    "UNLISTEN *",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET ALL",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
)
"""asyncpg's own reset, and what it leaves behind that reached the next user of a connection.

That was the role, temporary tables and the state of sequences. Never DISCARD ALL: it would also drop the statements
that we believe to be prepared.
"""
RESET_AHEAD = (BEGIN, *RESET, COMMIT)
"""In a transaction of its own: PostgreSQL would count it to the next one, and take it back with that."""

FORGET_STATEMENTS = "DEALLOCATE ALL"

REPEATED = (BEGIN, BEGIN_READ_ONLY, COMMIT, ROLLBACK, *RESET)
"""What is sent so often that each direct connection has it prepared."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a block begins.

    Attributes:
        statements: BEGIN first.
        one_statement: Whether a text inside the block may hold one statement only.
        tenant: Whose; `NOBODY` for none.
    """

    statements: tuple[str, ...]
    one_statement: bool = False
    tenant: TenantKey = NOBODY
