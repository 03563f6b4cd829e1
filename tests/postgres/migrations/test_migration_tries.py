"""Which errors of a migration are worth another try."""

import asyncpg
import pytest

from quart_tenants.errors import DatabaseUnavailableError, TenantError
from quart_tenants.postgres.migrations.migration_tries import may_succeed_later


def raised_from(cause: BaseException) -> TenantError:
    """Return the error for a connection that could not be opened because of *cause*."""
    try:
        raise DatabaseUnavailableError("cannot connect to the database") from cause
    except DatabaseUnavailableError as error:
        return error


@pytest.mark.parametrize(
    ("cause", "passes"),
    [
        (ConnectionRefusedError(), True),
        (asyncpg.CannotConnectNowError("the database system is starting up"), True),
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), True),
        (asyncpg.InvalidPasswordError("password authentication failed"), False),
        (asyncpg.InvalidAuthorizationSpecificationError("no pg_hba.conf entry"), False),
        (asyncpg.InvalidCatalogNameError("database does not exist"), False),
    ],
)
def test_refused_login_is_not_tried_again(cause: BaseException, passes: bool) -> None:
    """A server that is away may come back; a wrong password or database stays wrong."""
    assert may_succeed_later(raised_from(cause)) is passes
