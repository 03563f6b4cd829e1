"""The statements that begin, end and reset every block."""

import re
from dataclasses import dataclass
from typing import NamedTuple

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
"""asyncpg's own reset, and what that leaves behind: the role, temporary tables and the state of sequences.

All three reached the next user of a connection. Never DISCARD ALL: it would also drop the statements that we believe to
be prepared.
"""
RESET_AHEAD = (BEGIN, *RESET, COMMIT)
"""The reset as a transaction of its own: PostgreSQL would undo it together with the transaction that follows."""

FORGET_STATEMENTS = "DEALLOCATE ALL"

REPEATED = (BEGIN, BEGIN_READ_ONLY, COMMIT, ROLLBACK, *RESET)
"""These statements are sent so often that each fast connection has them prepared."""

SAVEPOINT_TEXT = re.compile(r"(?:SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO) \w+;")
"""What asyncpg's own transaction() sends inside a transaction. Nothing of the caller's is in it."""


class TenantKey(NamedTuple):
    """Whose statements are whose: a tenant before a migration and after it counts as two.

    Attributes:
        tenant: The tenant's number.
        version: The version of its tables.
        shared_version: The version of the tables that all tenants share.
    """

    tenant: int
    version: int
    shared_version: int = 0

    @property
    def versions(self) -> tuple[int, int]:
        """What two tenants must have in common to use one statement."""
        return self.version, self.shared_version


NOBODY = TenantKey(0, 0)
"""For blocks of no tenant, whose statements write every name in full."""

EVERYBODY = -1
"""In place of a tenant's number, for blocks that work in the shared schemas."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a block begins.

    Attributes:
        statements: BEGIN first.
        with_role: Whether the block acts as its tenant's role. Then each text that is run inside it holds one
            statement only, so that no injected text can leave the role and go on.
        tenant: Whose block it is; `NOBODY` for no tenant's.
    """

    statements: tuple[str, ...]
    with_role: bool = False
    tenant: TenantKey = NOBODY
