"""End sessions early, and keep in memory which sessions were ended."""

import random
import time
from typing import NamedTuple

from quart_tenants.argument_checks import check_arguments
from quart_tenants.audit import audit
from quart_tenants.connection import Connection, Row
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.tenant import Tenant

# The longest lifetime that a setting allows, and a day for clocks that differ. So a row lives at least as long as the
# sessions that it ends, also if the settings change. There is one such row for each user.
_LONGEST_LIFETIME = 366 * 86400
_SLACK = 86400
CLOCK_SLACK = 60
"""How many seconds the clocks of the workers and of the database may differ."""

_EVERY_SESSION = ""
_NEVER = 0, 0.0
_PRUNING_CHANCE = 0.01

# $5 the time of this machine. The clock that is ahead counts: by one that is behind, the row would be too old as soon
# as that is right again.
_END_SESSION = """
INSERT INTO quart_tenants.ended_sessions (tenant_id, username, session_id, forget_at)
VALUES ($1, $2, $3, greatest(now(), to_timestamp($5)) + make_interval(secs => $4)) ON CONFLICT DO NOTHING
"""
# Each call gets a new number, so that it also ends sessions that began after the last call.
# $4 the time of this machine.
_END_USER_SESSIONS = """
INSERT INTO quart_tenants.ended_sessions (tenant_id, username, session_id, forget_at)
VALUES ($1, $2, '', greatest(now(), to_timestamp($4)) + make_interval(secs => $3))
ON CONFLICT (tenant_id, username, session_id) DO UPDATE
SET
    generation = DEFAULT, ended_at = excluded.ended_at,
    transaction = excluded.transaction, forget_at = excluded.forget_at
RETURNING generation
"""
# Held until the commit: nobody may see a lower number after a higher one. The key is arbitrary.
_LOCK_GENERATION = "SELECT pg_catalog.pg_advisory_xact_lock(32760431163012212)"
_GET_GENERATION = "SELECT coalesce(max(generation), 0) FROM quart_tenants.ended_sessions WHERE session_id = ''"
_IS_ENDED = """
SELECT EXISTS (
    SELECT FROM quart_tenants.ended_sessions
    WHERE tenant_id = $1 AND username = $2 AND (
        session_id = $3 OR session_id = '' AND (
            generation > $4 OR extract(epoch FROM ended_at) > $5 AND ended_at <= now() + make_interval(secs => $6)
        )
    )
)
"""
# $1 the time of this machine. The clock that is behind counts: with one that is ahead, the end of a session would be
# forgotten while its cookie is still good.
_NOW = "least(now(), to_timestamp($1))"
_SELECT_ENDED = f"""
SELECT
    tenant_id, username, session_id, generation,
    extract(epoch FROM ended_at)::float8 AS ended_at, extract(epoch FROM forget_at - {_NOW})::float8 AS seconds_left
FROM quart_tenants.ended_sessions
"""  # noqa: S608  (of our own)
_LIST_ENDED = f"{_SELECT_ENDED} WHERE forget_at > {_NOW}"
# $2 the last snapshot. Rows that it did not show are new, as in the feed of changes.
_LIST_NEWLY_ENDED = f"""{_SELECT_ENDED}
WHERE transaction >= pg_catalog.pg_snapshot_xmin($2::text::pg_catalog.pg_snapshot)
    AND NOT pg_catalog.pg_visible_in_snapshot(transaction, $2::text::pg_catalog.pg_snapshot)
    AND transaction < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
"""
# Never waits for a row that another transaction writes: two that waited could wait for each other.
_PRUNE = f"""
DELETE FROM quart_tenants.ended_sessions WHERE (tenant_id, username, session_id) IN (
    SELECT e.tenant_id, e.username, e.session_id FROM quart_tenants.ended_sessions AS e
    WHERE e.forget_at < {_NOW} LIMIT 10000 FOR UPDATE SKIP LOCKED
)
"""  # noqa: S608  (of our own)


class IssuedSession(NamedTuple):
    """The facts that identify one session.

    Attributes:
        tenant_id: The number of the tenant; 0 for the apex.
        username: The user as given at the login; empty for a visitor who has not logged in.
        session_id: A random text, new at each login.
        generation: The session counter when the login began.
        began_at: The time of the login, in seconds since 1970 by the worker's clock.
    """

    tenant_id: int
    username: str
    session_id: str
    generation: int
    began_at: int


class EndedSessions:
    """All ended sessions whose cookies may still arrive, in the memory of one worker."""

    def __init__(self) -> None:
        # When each may be forgotten, by the clock that nobody sets.
        self._sessions: dict[tuple[int, str], float] = {}
        # The newest ended session counter and the time of that end, by tenant and user.
        self._users: dict[tuple[int, str], tuple[int, float]] = {}
        self._prune_at = 0.0

    def __contains__(self, session: IssuedSession) -> bool:
        tenant_id, username, session_id, generation, began_at = session
        if (tenant_id, session_id) in self._sessions:
            return True
        users_generation, ended_at = self._users.get((tenant_id, username), _NEVER)
        if users_generation > generation:
            return True
        # An end in the future was written before a clock was set back. Its time would lock the user out until then.
        return began_at + CLOCK_SLACK < ended_at <= time.time() + CLOCK_SLACK

    def add(self, session: IssuedSession) -> None:
        """Add an ended session at once, before the feed brings it."""
        self._sessions[session.tenant_id, session.session_id] = time.monotonic() + _LONGEST_LIFETIME

    async def load(self, connection: Connection) -> None:
        """Read all ended sessions."""
        rows = await connection.fetch(_LIST_ENDED, time.time())
        self._sessions.clear()
        self._users.clear()
        self._put(rows)

    async def refresh(self, connection: Connection, snapshot: str) -> None:
        """Read the ended sessions that *snapshot* did not show."""
        self._put(await connection.fetch(_LIST_NEWLY_ENDED, time.time(), snapshot))
        self._forget()

    def _put(self, rows: list[Row]) -> None:
        now = time.monotonic()
        for row in rows:
            if row["session_id"] == _EVERY_SESSION:
                self._users[row["tenant_id"], row["username"]] = row["generation"], row["ended_at"]
            else:
                self._sessions[row["tenant_id"], row["session_id"]] = now + row["seconds_left"]

    def _forget(self) -> None:
        now = time.monotonic()
        if now < self._prune_at:
            return
        self._prune_at = now + 60
        for session in [session for session, forget_at in self._sessions.items() if forget_at < now]:
            del self._sessions[session]


async def end_session_in(connection: Connection, session: IssuedSession, seconds: float) -> None:
    """End *session* for every worker. Doing it again does no harm.

    Args:
        connection: Inside a block with an empty path.
        session: The session.
        seconds: How long its cookie could still be used.
    """
    await connection.execute(
        _END_SESSION, session.tenant_id, session.username, session.session_id, seconds + _SLACK, time.time()
    )
    await _prune_now_and_then(connection)


@check_arguments
async def end_user_sessions(database: Database, tenant: Tenant, username: str) -> int:
    """End all sessions of a user, on every worker within two seconds: "log out everywhere".

    Call it after a new password, for a user who was suspended or deleted, or for a lost device. It also ends sessions
    of logins that began before it returns. A name without a user does no harm.

    Args:
        database: The database of the tenant.
        tenant: The tenant of the user.
        username: The user as given to `start_session`.

    Returns:
        The new session counter. Give it to `start_session` to begin a session that only a later call ends, for
        example for the user who has just changed the password.

    Raises:
        TypeError: *username* is no text, for example a number.
        ValueError: *username* is empty.
        DatabaseUnavailableError: The database cannot be reached; nothing was ended.

    Example:
        ```python
        generation = await end_user_sessions(tenants.database, current_tenant, "7")
        await start_session("7", generation=generation)
        ```
    """
    async with database.connection() as connection:
        generation = await end_user_sessions_in(connection, tenant.id, username)
    audit("sessions_ended", tenant=tenant.slug, user=username)
    return generation


async def end_user_sessions_in(connection: Connection, tenant_id: int, username: str) -> int:
    """End all sessions of a user in the caller's transaction; return the new session counter.

    Concurrent calls wait until it commits.
    """
    check_username(username)
    await connection.execute(_LOCK_GENERATION)
    generation: int = await connection.fetchval(
        _END_USER_SESSIONS, tenant_id, username, _LONGEST_LIFETIME + _SLACK, time.time()
    )
    await _prune_now_and_then(connection)
    return generation


def check_username(username: object) -> None:
    """Make sure that sessions can be ended by *username*.

    Raises:
        TypeError: It is no text.
        ValueError: It is empty, as for a visitor who has not logged in.
    """
    if not isinstance(username, str):
        raise TypeError(f"a session's user is text, such as str(user.id), and not {type(username).__name__}")
    if not username:
        raise ValueError("a session's user has no name")


async def get_generation(connection: Connection) -> int:
    """Return the session counter for a session that begins now. Any later end of the user's sessions ends it."""
    generation: int = await connection.fetchval(_GET_GENERATION)
    return generation


async def is_ended(database: Database, session: IssuedSession) -> bool:
    """Ask the database whether *session* was ended. A worker does so if it had no news for too long."""
    async with database.connection() as connection:
        *named, began_at = session
        ended: bool = await connection.fetchval(_IS_ENDED, *named, began_at + CLOCK_SLACK, CLOCK_SLACK)
    return ended


async def prune_ended_sessions(connection: Connection) -> None:
    """Delete rows whose sessions are over in any case."""
    await connection.execute(_PRUNE, time.time())


async def _prune_now_and_then(connection: Connection) -> None:
    # A set-up without a daily `purge` must not grow for ever.
    if random.random() < _PRUNING_CHANCE:  # noqa: S311
        await prune_ended_sessions(connection)
