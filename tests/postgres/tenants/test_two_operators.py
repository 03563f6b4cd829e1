"""Two operators who change one tenant at the same time: each hears what became of it, and nothing is half done."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from quart_tenants.errors import TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.tenants.lifecycle import rename_tenant, suspend_tenant
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant, undrop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug

pytestmark = pytest.mark.slow

ACME, ZENITH = parse_slug("acme"), parse_slug("zenith")

Act = Callable[[Database, Settings], Awaitable[object]]

ACTS: dict[str, Act] = {
    "create": lambda database, settings: create_tenant(database, ACME, "Acme", settings=settings),
    "drop": lambda database, _: drop_tenant(database, ACME),
    "undrop": lambda database, settings: undrop_tenant(database, ACME, settings=settings),
    "purge": lambda database, settings: purge_trash(database, settings=settings, slugs=[ACME]),
    "rename": lambda database, settings: rename_tenant(database, ACME, ZENITH, settings=settings),
    "suspend": lambda database, _: suspend_tenant(database, ACME),
}
# The tenants of either name, and how many tenants at all have no schema.
COUNT = """
SELECT
    count(*) FILTER (WHERE slug IN ('acme', 'zenith')) AS tenants,
    count(*) FILTER (WHERE to_regnamespace(quote_ident(schema_name)) IS NULL) AS without_schema
FROM quart_tenants.tenants
"""


@pytest.mark.parametrize(
    ("one", "other", "in_trash"),
    [
        *(
            (one, other, False)
            for one, other in itertools.combinations_with_replacement(("drop", "rename", "suspend"), 2)
        ),
        *((one, other, True) for one, other in itertools.combinations_with_replacement(("undrop", "purge"), 2)),
        ("create", "purge", True),
        ("create", "drop", False),
    ],
)
async def test_two_operators_leave_one_state(
    settings: Settings, database: Database, one: str, other: str, in_trash: bool
) -> None:
    """At least one succeeds, whoever does not is told why in an error of ours, and schema and registry agree."""
    if in_trash:
        await drop_tenant(database, ACME)

    async with await Database.open(settings, max_size=1) as second:
        ended = await asyncio.gather(
            ACTS[one](database, settings), ACTS[other](second, settings), return_exceptions=True
        )

    failures = [error for error in ended if isinstance(error, BaseException)]
    assert len(failures) < 2, failures
    for failure in failures:
        assert isinstance(failure, TenantError), repr(failure)
        assert "acme" in str(failure)
    async with database.connection() as connection:
        count = await connection.fetchrow(COUNT)
    assert count is not None
    assert count["without_schema"] == 0
    # Only a purge takes the tenant away, and after it the name may be free or still resting.
    assert count["tenants"] == 1 or (count["tenants"] == 0 and "purge" in (one, other))
