"""Let the clocks of this process and of the database jump, while the clock of the machine goes on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.support.databases import execute

HOUR = 3600.0
DAY = 24 * HOUR

# A server whose clock jumps an hour ahead finds that all it has written is an hour older than it was.
_SHIFT = """
DO $do$
DECLARE part record;
BEGIN
    FOR part IN
        SELECT c.oid::regclass AS place, string_agg(format('%1$I = %1$I - interval ''{} s''', a.attname), ', ') AS moves
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
        WHERE c.relnamespace = 'quart_tenants'::regnamespace AND c.relkind = 'r' AND a.atttypid = 'timestamptz'::regtype
        GROUP BY c.oid
    LOOP
        EXECUTE format('UPDATE %s SET %s', part.place, part.moves);
    END LOOP;
END
$do$
"""


@dataclass
class Clocks:
    """The clocks of this process and of one database, which jump together.

    Attributes:
        url: The database.
        patch: It changes `time.time`.
        ahead: How many seconds this process is ahead of the machine.
    """

    url: str
    patch: pytest.MonkeyPatch
    ahead: float = 0.0
    _true: Callable[[], float] = field(default=time.time)

    async def jump(self, seconds: float) -> None:
        """Set both forward, or back if *seconds* is below 0."""
        self.jump_here(seconds)
        await self.let_rows_age(seconds)

    def jump_here(self, seconds: float) -> None:
        """Set the clock of this process alone."""
        self.ahead += seconds
        self.patch.setattr(time, "time", lambda: self._true() + self.ahead)

    async def let_rows_age(self, seconds: float) -> None:
        """Let the database have written so long ago what it has written."""
        await execute(self.url, _SHIFT.format(seconds))
