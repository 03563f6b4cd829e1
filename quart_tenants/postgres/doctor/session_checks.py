"""Check what a pooler makes of sessions, and that what needs a session of its own has one."""

from time import monotonic

from quart_tenants.errors import DatabaseRefusedError, TenantError
from quart_tenants.postgres.blocks.database import DEFAULTS, Database
from quart_tenants.postgres.blocks.own_sessions import open_own_session
from quart_tenants.postgres.doctor.catalogue_checks import Finding, State, judge
from quart_tenants.postgres.driver.server_process import GET_SERVER_PROCESS, has_to_itself
from quart_tenants.settings import Settings

_OWN_SESSIONS = "own sessions"


async def find_own_session(settings: Settings) -> Finding:
    """Find out whether backups, messages and migrations outside a transaction have a session of their own."""
    try:
        connection = await open_own_session(settings, DEFAULTS, "the doctor")
    except DatabaseRefusedError:
        seen = "a pooler stands between: backups, messages and migrations outside a transaction are refused"
        remedy = "give the URL of PostgreSQL itself in TENANTS_DIRECT_DATABASE_URL"
        return Finding(_OWN_SESSIONS, State.WARNING, seen, remedy)
    except TenantError as error:
        remedy = "correct the URL: backups, messages and migrations outside a transaction need it"
        return Finding(_OWN_SESSIONS, State.FAILED, str(error), remedy)
    connection.terminate()
    return Finding(_OWN_SESSIONS, State.OK, "what needs a session of its own has one, in the same database")


async def find_pooler(database: Database, *, shared: bool) -> Finding:
    """Find out whether a pooler stands between.

    Args:
        database: It is asked by a connection of its own.
        shared: Whether two clients were seen on one server process, as where a pooler lends it for a transaction.
    """
    opened_at = monotonic()
    async with database.plain_session() as connection:
        process = await connection.fetchrow(GET_SERVER_PROCESS)
        alone = has_to_itself(connection, process, opened_at, DEFAULTS["search_path"])
    seen = "" if alone or shared else "one gives each client a server process for as long as it is connected"
    fine = "none stands between" if alone else "one lends server processes for a transaction"
    return judge("pooler", seen, fine, "set pool_mode = transaction, or do without the pooler", State.WARNING)
