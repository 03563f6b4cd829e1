"""End sessions before their time, and know in memory which were ended."""

import random
import time
from typing import TYPE_CHECKING, NamedTuple

from quart_tenants.audit import audit
from quart_tenants.connection import Row
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.tenant import Tenant

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

# The longest lifetime that a setting allows, and a day for clocks that differ. A row lives at least as long as what
# it ends, whatever the settings say later or elsewhere; of these there is one a user.
_LONGEST_LIFETIME = 366 * 86400
_SLACK = 86400
# Between the clocks of the workers and of the database.
_CLOCK_SLACK = 60
_EVERY_SESSION = ""
_NEVER = 0, 0.0
_PRUNING_CHANCE = 0.01

_END_SESSION = """
INSERT INTO quart_tenants.ended_sessions (tenant_id, username, session_id, forget_at)
VALUES ($1, $2, $3, now() + make_interval(secs => $4)) ON CONFLICT DO NOTHING
"""
# A number of its own each time: who logged in since the last time is meant, too.
_END_USER_SESSIONS = """
INSERT INTO quart_tenants.ended_sessions (tenant_id, username, session_id, forget_at)
VALUES ($1, $2, '', now() + make_interval(secs => $3))
ON CONFLICT (tenant_id, username, session_id) DO UPDATE
SET
    generation = DEFAULT, ended_at = excluded.ended_at,
    transaction = excluded.transaction, forget_at = excluded.forget_at
RETURNING generation
"""
# Until the commit: a number that is seen must never be followed by a lower one. The number is arbitrary, but ours.
_LOCK_GENERATION = "SELECT pg_catalog.pg_advisory_xact_lock(32760431163012212)"
_GET_GENERATION = "SELECT coalesce(max(generation), 0) FROM quart_tenants.ended_sessions WHERE session_id = ''"
_IS_ENDED = """
SELECT EXISTS (
    SELECT FROM quart_tenants.ended_sessions
    WHERE tenant_id = $1 AND username = $2 AND (
        session_id = $3 OR session_id = '' AND (generation > $4 OR extract(epoch FROM ended_at) > $5)
    )
)
"""
_LIST_ENDED = """
SELECT
    tenant_id, username, session_id, generation,
    extract(epoch FROM ended_at)::float8 AS ended_at, extract(epoch FROM forget_at)::float8 AS forget_at
FROM quart_tenants.ended_sessions WHERE forget_at > now()
"""
# $1 the last snapshot: what it did not show is new, as in the feed of changes.
_LIST_NEWLY_ENDED = """
SELECT
    tenant_id, username, session_id, generation,
    extract(epoch FROM ended_at)::float8 AS ended_at, extract(epoch FROM forget_at)::float8 AS forget_at
FROM quart_tenants.ended_sessions
WHERE transaction >= pg_catalog.pg_snapshot_xmin($1::text::pg_catalog.pg_snapshot)
    AND NOT pg_catalog.pg_visible_in_snapshot(transaction, $1::text::pg_catalog.pg_snapshot)
    AND transaction < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
"""
# Never waits for a row that somebody writes: two who did could wait for each other.
_PRUNE = """
DELETE FROM quart_tenants.ended_sessions WHERE (tenant_id, username, session_id) IN (
    SELECT e.tenant_id, e.username, e.session_id FROM quart_tenants.ended_sessions AS e
    WHERE e.forget_at < now() LIMIT 10000 FOR UPDATE SKIP LOCKED
)
"""


class IssuedSession(NamedTuple):
    """What names one session.

    Attributes:
        tenant_id: Whose; 0 for the domain itself.
        username: As given at the login; empty for a visitor who has not logged in.
        session_id: Random, new at each login.
        generation: The newest one when the login began.
        began_at: Its login, in seconds since 1970 by the worker's clock.
    """

    tenant_id: int
    username: str
    session_id: str
    generation: int
    began_at: int


class EndedSessions:
    """Every session that was ended and whose cookie could still be shown, in the memory of one worker."""

    def __init__(self) -> None:
        # When each may be forgotten, in seconds since 1970.
        self._sessions: dict[tuple[int, str], float] = {}
        # The newest generation that is over and when it ended, by tenant and user: one entry a user.
        self._users: dict[tuple[int, str], tuple[int, float]] = {}
        self._prune_at = 0.0

    def __contains__(self, session: IssuedSession) -> bool:
        if (session.tenant_id, session.session_id) in self._sessions:
            return True
        generation, ended_at = self._users.get((session.tenant_id, session.username), _NEVER)
        return generation > session.generation or ended_at > session.began_at + _CLOCK_SLACK

    def add(self, session: IssuedSession) -> None:
        """Know of one at once, before the feed tells it."""
        self._sessions[session.tenant_id, session.session_id] = time.time() + _LONGEST_LIFETIME

    async def load(self, connection: "Connection") -> None:
        """Read all of them."""
        rows = await connection.fetch(_LIST_ENDED)
        self._sessions.clear()
        self._users.clear()
        self._put(rows)

    async def refresh(self, connection: "Connection", snapshot: str) -> None:
        """Read what *snapshot* did not show."""
        self._put(await connection.fetch(_LIST_NEWLY_ENDED, snapshot))
        self._forget()

    def _put(self, rows: list[Row]) -> None:
        for row in rows:
            if row["session_id"] == _EVERY_SESSION:
                self._users[row["tenant_id"], row["username"]] = row["generation"], row["ended_at"]
            else:
                self._sessions[row["tenant_id"], row["session_id"]] = row["forget_at"]

    def _forget(self) -> None:
        now = time.time()
        if now < self._prune_at:
            return
        self._prune_at = now + 60
        for session in [session for session, forget_at in self._sessions.items() if forget_at < now]:
            del self._sessions[session]


async def end_session_in(connection: "Connection", session: IssuedSession, seconds: float) -> None:
    """Write down that *session* is over, for every worker. Doing it again does no harm.

    Args:
        connection: Inside a block with an empty path.
        session: Which.
        seconds: How long its cookie could be shown yet.
    """
    await connection.execute(_END_SESSION, session.tenant_id, session.username, session.session_id, seconds + _SLACK)
    await _prune_now_and_then(connection)


async def end_user_sessions(database: Database, tenant: Tenant, username: str) -> int:
    """End every session of a user, on every worker within two seconds: "log out everywhere".

    For a new password, a user who was suspended or deleted, a lost device. Sessions of logins that began before
    this has returned are ended, too. A name that is no user's does no harm.

    Args:
        database: Where.
        tenant: Whose user.
        username: As it was given to `start_session`.

    Returns:
        The generation for a session that is to begin with this and not to outlive any later end: of who has
        changed the password, see `start_session`.

    Raises:
        TypeError: *username* is no text, such as a number.
        ValueError: It is empty.
        DatabaseUnavailableError: The database cannot be reached; nothing was ended.
    """
    async with database.connection() as connection:
        generation = await end_user_sessions_in(connection, tenant.id, username)
    audit("sessions_ended", tenant=tenant.slug, user=username)
    return generation


async def end_user_sessions_in(connection: "Connection", tenant_id: int, username: str) -> int:
    """Do the same in the transaction of *connection*, which others who do it wait for."""
    check_username(username)
    await connection.execute(_LOCK_GENERATION)
    generation: int = await connection.fetchval(_END_USER_SESSIONS, tenant_id, username, _LONGEST_LIFETIME + _SLACK)
    await _prune_now_and_then(connection)
    return generation


def check_username(username: object) -> None:
    """Make sure that sessions can be ended by *username*.

    Raises:
        TypeError: It is no text.
        ValueError: It is empty, as for who has not logged in.
    """
    if not isinstance(username, str):
        raise TypeError(f"a session's user is text, such as str(user.id), and not {type(username).__name__}")
    if not username:
        raise ValueError("a session's user has no name")


async def get_generation(connection: "Connection") -> int:
    """Return the generation for a session that begins with what is known now: any later end of its user ends it."""
    generation: int = await connection.fetchval(_GET_GENERATION)
    return generation


async def is_ended(database: Database, session: IssuedSession) -> bool:
    """Ask the database whether *session* was ended, for a worker that has had no news for too long."""
    async with database.connection() as connection:
        *named, began_at = session
        ended: bool = await connection.fetchval(_IS_ENDED, *named, began_at + _CLOCK_SLACK)
    return ended


async def prune_ended_sessions(connection: "Connection") -> None:
    """Delete what serves nobody any more."""
    await connection.execute(_PRUNE)


async def _prune_now_and_then(connection: "Connection") -> None:
    # Here, because a set-up without a daily `purge` must not grow for ever either.
    if random.random() < _PRUNING_CHANCE:  # noqa: S311
        await prune_ended_sessions(connection)
